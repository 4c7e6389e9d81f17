"""Connections to addresses that somebody else chose: only to public ones, and to exactly the checked one.

networks     the addresses that nobody may be sent to
connections  a URL's checks, its resolution, and the connection

A stranger's URL could make this machine call a service inside the operator's network (server-side request
forgery). Knows neither webhooks nor files of weights.
"""

from app.outgoing.connections import AddressRefused, Refusal, check_url, connect, parse, resolve, time_limit
from app.outgoing.networks import is_public

__all__ = [
    "AddressRefused",
    "Refusal",
    "check_url",
    "connect",
    "is_public",
    "parse",
    "resolve",
    "time_limit",
]
