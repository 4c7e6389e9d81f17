"""Values that requests, settings and models files have in common, with their checks.

keyframes  frames that pictures give
loras      LoRA files with their scales
recipes    how a model is sampled, and what a job may change of that
roles      what a worker does of each job
"""
