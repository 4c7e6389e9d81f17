"""What every request passes before its route: proxies, cross-site protection, shares of clients, metrics."""
