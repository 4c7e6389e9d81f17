"""Encodes clips to files of latents and reads them back. Imports torch; must not know jobs."""
