"""Parsing of requests: reads bodies within limits, splits them into fields and images, builds a `JobSpec`."""
