"""What several VAE families share: the base class, traits from a configuration, engines, layer rules.

Imports no torch when it is loaded; imports no family.
"""
