"""The HTTP interface. `create_app(settings)` builds it; no file in here, and nothing it imports, loads torch.

app        create_app: routes, headers, start and stop
service    what the routes share
submit     POST /generate, /plan, /jobs/{id}/redecode      bodies, requests, schemas: how a body becomes a
JobSpec jobs       list, look, follow (SSE), fetch, cancel         feed: one poller for all followers
system     devices, models, health, metrics
views      rows as JSON          problems   every error as RFC 9457      access   API keys
"""

from app.api.app import create_app

__all__ = ["create_app"]
