"""Pictures and clips in, video and sound out. Knows no HTTP, no jobs and no tensors."""
