"""The folder of LoRA files: which there are, what they change, and which models take them.

Reads headers and digests; must not import torch. `app.worker.loras` applies them.
"""
