"""The HTTP interface. `create_app(settings)` builds it; no file here, and nothing it imports, loads torch.

app               create_app: routes, headers, start and stop
dependencies      what the routes share
requests/         how a body becomes a JobSpec
routes/           one file a group of routes
feed              one poller of the events table for every follower
views             rows as JSON
response_schemas  answers as the OpenAPI document describes them
problems          every error as an RFC 9457 document
access, guard     API keys; headers and request ids
server            uvicorn with limits on what a client may hold open
"""

from app.api.app import create_app

__all__ = ["create_app"]
