"""Says what a file of weights is, by the names and shapes of its tensors: component, class, published model,
key layout and number format. Imports neither torch nor diffusers.
"""
