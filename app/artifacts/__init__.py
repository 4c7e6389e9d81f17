"""Where a job's files are stored. Must not know what is inside them."""
