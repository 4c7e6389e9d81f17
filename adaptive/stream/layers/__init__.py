"""Single layers of a stream: temporal windows, residual adds, norms, convolutions, early release of inputs.

Imports only the dispatcher (`adaptive.stream.intercept`) and the checks of layers; knows no engine and no VAE
family.
"""
