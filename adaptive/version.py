"""The one place that holds the version; read by the build, the API document and the `framefit` command."""

__version__ = "0.1.0"
