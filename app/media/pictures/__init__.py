"""Reads pictures of every format: structure, metadata, colour, pixels. `app.media.images` is its face.

Damaged or hostile bytes are decoded in a process of their own. Must not know HTTP or jobs.
"""
