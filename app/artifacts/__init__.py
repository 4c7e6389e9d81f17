"""Where results lie: the files of a job. Knows nothing of what is inside them."""
