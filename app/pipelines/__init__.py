"""Pipelines that diffusers does not have, the built-in models, and published models' configurations."""
