"""What every request passes before its route: proxies, cross-site protection, response headers."""
