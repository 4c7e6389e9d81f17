"""What a model is and how it comes onto a device: entries, components, sizes, loading, placement, profiles.

Imports pipelines, settings and the library. The API process imports only its torch-free files.
"""
