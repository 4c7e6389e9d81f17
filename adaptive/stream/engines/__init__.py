"""Engines: run the next latent frames through one kind of VAE and return the video frames that are finished.

`engine` drives an unmodified network with streaming rules (`chunk_pass`), `cached` one that has caches
itself, `strips` and `planes` run the last layers on bands of a frame, `sweep` runs layer by layer, `stages`
makes a failed step resumable. Imports the layer rules and what streams share; knows neither device placement
nor any VAE family.
"""
