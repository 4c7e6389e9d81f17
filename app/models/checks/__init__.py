"""Checks whether a model's files can be loaded, without reading weights. Imports neither torch nor diffusers.

model_folder  a folder of components: index, configurations, weights, class names
faults        why a model cannot be used, looked at again every few seconds
"""
