"""Applies the LoRAs of a job to a loaded pipeline and takes them away again; peft computes with them.

The transformers' own weights are never changed: nothing is fused. Must not know the job table.
"""
