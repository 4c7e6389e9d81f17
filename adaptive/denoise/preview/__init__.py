"""Shows a video while it is denoised: the clean estimate of a step, as pixels, without a decode.

Imports torch and the rooms below. Must not know jobs, files or when a picture is made.
"""
