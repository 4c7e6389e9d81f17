"""Where the library meets a diffusers pipeline: `enable`, `capture`, and the recorded `vae.decode` call.

Sets attributes on a pipeline's VAE and takes them off again; imports `decoding` and everything below it.
"""
