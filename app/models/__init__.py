"""Describes models and loads them onto devices: entries, components, sizes, loading, placement, profiles.

Imports pipelines, settings and the library. The API process imports only its torch-free files.
"""
