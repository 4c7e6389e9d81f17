"""Values that requests and models files have in common, with their checks.

loras    LoRA files with their scales
recipes  how a model is sampled, and what a job may change of that
"""
