"""Tells queued jobs that are denoised from those that are not: who takes them, and who waits."""
