"""Engines: how one kind of VAE turns the next latent frames into the next video frames.

Imports the layer rules and what streams share; knows no device placement and no VAE family.
"""
