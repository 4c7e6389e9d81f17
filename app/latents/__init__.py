"""Clips to latents and back, as files: the clip encoder, the file of latents, tensors written in pieces."""
