"""The Framefit service: an HTTP API, a job table, one worker process for each device, and a supervisor.

`app` uses `adaptive`; `adaptive` never imports `app`. The API, scheduling, the store, the supervisor and the
HTTP client never import torch.
"""
