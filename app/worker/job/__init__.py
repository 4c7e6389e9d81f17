"""One attempt at one job: its stages, what stops it, how it fails, and the pictures beside its video.

Knows the job table through `JobStore`. Must not know the worker's loop.
"""
