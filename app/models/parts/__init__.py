"""Components that an entry takes from files of its own: GGUF, fp8, single safetensors files, folders.

A model is then its base, with some components replaced. What a file holds is read from its header, so every
fault is found, and every byte planned, before weights are read.

part         one component's file or folder: its header, what it is, why it cannot be loaded; without torch
entry_parts  the parts of an entry, checked against the components of its base; without torch
scaled       fp8 weights and their scales: a tensor that keeps its scale, a linear layer that uses it
checkpoint   a file's tensors, real or without data, under the names of the component's class
assembly     a component of these tensors
"""
