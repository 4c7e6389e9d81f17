"""Single layers of a stream: temporal windows, residual adds, norms, convolutions, early release of inputs.

Imports only the replacement of `forward` (`adaptive.stream.intercept`); knows no engine and no VAE family.
"""
