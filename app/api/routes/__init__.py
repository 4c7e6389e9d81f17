"""One file for each group of routes. A route parses the request, makes one call and returns JSON."""
