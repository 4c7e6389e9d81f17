"""Pipelines and model descriptions that the service brings along."""
