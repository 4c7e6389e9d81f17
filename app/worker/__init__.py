"""From claim to mp4 on one device: the loop, one job's run, the loaded model, decoding, the way to the video.

Imports torch. Knows the job table through `JobStore` and no HTTP.
"""
