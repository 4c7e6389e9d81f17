"""The Framefit service: an HTTP API, a job table, one worker process a device, and the supervisor above them.

`app` uses `adaptive`; `adaptive` never imports `app`. Only engine, pipelines and worker import torch.
"""
