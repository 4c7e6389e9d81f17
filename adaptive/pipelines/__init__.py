"""Connects the library to a diffusers pipeline: `enable`, `capture`, and the recorded `vae.decode` call.

It sets attributes on a pipeline's VAE and removes them again. It imports `decoding` and the rooms below it.
"""
