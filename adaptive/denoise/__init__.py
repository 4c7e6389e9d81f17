"""Watches the denoising loop of a diffusers pipeline: its denoiser calls and its `scheduler.step`.

What is watched can be recorded, answered again without computing, and retried. Imports torch and the rooms
below; must not know jobs, files or where weights are.
"""
