"""One file a group of routes. Each route parses, makes one call, and maps the result to an answer."""
