"""How a request body becomes a `JobSpec`: read within limits, taken apart, checked against its model."""
