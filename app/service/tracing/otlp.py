"""Sends spans to an OpenTelemetry collector by OTLP over HTTP, with OpenTelemetry's own library.

The standard variables hold, too: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_TIMEOUT` and the rest.
"""

import logging
import os
import socket
import threading
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from adaptive.version import __version__
from app.service.tracing.spans import Span, span_id_of, trace_id_of

TRACES_PATH = "/v1/traces"
NANOSECONDS = 1_000_000_000
CLOSE_SECONDS = 2.0
# It would log each request that failed, several times a second; `sender` says once what is wrong.
logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)


class Collector:
    """The collector at an endpoint, such as http://127.0.0.1:4318."""

    def __init__(self, endpoint: str) -> None:
        url = endpoint.rstrip("/")
        self._url = url if url.endswith(TRACES_PATH) else url + TRACES_PATH
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        own = {"service.version": __version__, "host.name": socket.gethostname()}
        self._resource = Resource.create(own if named else {**own, "service.name": "framefit"})
        self._ids = _GivenIds()
        self._made = _Collected()
        jobs = TracerProvider(
            sampler=ALWAYS_ON, resource=self._resource, id_generator=self._ids, shutdown_on_exit=False
        )
        jobs.add_span_processor(self._made)
        self._jobs = jobs.get_tracer("framefit.jobs", __version__)
        self._exporter = OTLPSpanExporter(endpoint=self._url)

    def send(self, job_id: str, spans: Sequence[Span]) -> bool:
        """Send the spans of a job, parents first; return whether the collector took them."""
        contexts: dict[str, Context] = {}
        for span in spans:
            self._ids.trace_id, self._ids.span_id = trace_id_of(job_id), span_id_of(job_id, span)
            within = Context() if span.parent is None else contexts[span.parent.key]
            made = self._jobs.start_span(
                span.name, context=within, attributes=span.attributes, start_time=_ns(span.start)
            )
            for moment in span.moments:
                made.add_event(moment.name, moment.attributes, timestamp=_ns(moment.at))
            if span.error is not None:
                made.set_status(trace.StatusCode.ERROR, span.error)
            made.end(end_time=_ns(span.end))
            contexts[span.key] = trace.set_span_in_context(made, Context())
        return self._exporter.export(self._made.take()) is SpanExportResult.SUCCESS

    def requests(self) -> "RequestSpans":
        """What makes spans of requests for this collector."""
        provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON), resource=self._resource, shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=self._url)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return RequestSpans(provider, exporter)

    def close(self) -> None:
        """Send nothing more."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class RequestSpans:
    """One span for each HTTP request, in the trace that the request's `traceparent` header names."""

    def __init__(self, provider: TracerProvider, exporter: OTLPSpanExporter) -> None:
        self._provider = provider
        self._exporter = exporter
        self._tracer = provider.get_tracer("framefit.http", __version__)

    def add(
        self,
        route: str,
        method: str,
        status: int,
        *,
        start: float,
        end: float,
        headers: dict[str, str],
        job_id: str | None,
    ) -> None:
        """Note a request, `start` and `end` in seconds since the epoch. `job_id`: of the job that it made,
        whose trace is linked.
        """
        within = TraceContextTextMapPropagator().extract(headers, Context())
        links = []
        attributes: dict[str, str | int] = {
            "http.route": route,
            "http.request.method": method,
            "http.response.status_code": status,
        }
        if job_id is not None:
            attributes["framefit.job.id"] = job_id
            links.append(trace.Link(_sampled(trace_id_of(job_id), 1)))
        span = self._tracer.start_span(
            f"{method} {route}",
            context=within,
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            links=links,
            start_time=_ns(start),
        )
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(end_time=_ns(end))

    def close(self) -> None:
        """Send what is left, in the time that a collector which answers needs."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class _GivenIds(IdGenerator):
    """Ids that are set before each span."""

    trace_id = span_id = 1

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class _Collected(SpanProcessor):
    """Keeps ended spans until they are taken."""

    def __init__(self) -> None:
        self._spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)

    def take(self) -> list[ReadableSpan]:
        taken, self._spans = self._spans, []
        return taken


def _sampled(trace_id: int, span_id: int) -> trace.SpanContext:
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    return trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)


def _ns(seconds: float) -> int:
    return int(seconds * NANOSECONDS)
