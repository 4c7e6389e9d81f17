"""The HTTP interface, built by `create_app(settings)`. Neither these files nor their imports load torch.

app               create_app: routes, headers, start and stop
dependencies      objects shared by all routes
requests/         parsing of a request body into a JobSpec
routes/           one file for each group of routes
feed              one poller of the events table for all event streams
views             jobs, events, devices and models as JSON
response_schemas  response bodies for the OpenAPI document
problems          errors as RFC 9457 problem documents
access, guard     API keys; response headers and request ids
server            uvicorn with timeouts and connection limits
static/           the web page
"""

from app.api.app import create_app

__all__ = ["create_app"]
