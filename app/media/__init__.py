"""Reads images and clips, writes video, sound and thumbnails. Must not know HTTP, jobs or tensors."""
