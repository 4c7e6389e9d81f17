"""The denoise of one job: where its weights go, its checkpoints, and what it gives up when memory runs out.

Knows the loaded model and the job's request. Must not know the job table or HTTP.
"""
