"""Decode video latents in the memory that is free right now, with the same pixels at every chunk size."""
