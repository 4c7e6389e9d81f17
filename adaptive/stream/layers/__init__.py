"""Single layers of a stream: temporal windows, norms, convolutions and the early release of their inputs.

Imports only the interception of `forward`; knows no engine and no VAE family.
"""
