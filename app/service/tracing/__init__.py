"""Traces for OpenTelemetry: what each job and each request did, and when. Off unless an endpoint is set.

A job's trace is made from its events after it has ended, as the metrics are: no process that may be killed
holds a part of it, and workers know nothing of traces.

spans   events of a job -> spans, by arithmetic
otlp    spans -> an OpenTelemetry collector, by OpenTelemetry's own library (the extra `otel`)
sender  which jobs' traces are sent, and when
"""
