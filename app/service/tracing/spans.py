"""Spans of a job from its events: queued, attempts, stages, chunks of the decode. Knows no OpenTelemetry."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.jobs import Event, JobStatus

Value = str | bool | int | float
JOB, QUEUED, ATTEMPT, CHUNK = "job", "queued", "attempt", "decode chunk"
# These begin or end spans, or come too often to be noted one by one.
_NOT_NOTED = frozenset({"accepted", "chunk", "progress", "stage", "preview"})
_QUEUED_BY = frozenset({"accepted", "requeued", "queued_again"})


@dataclass(slots=True)
class Moment:
    """Something that happened within a span, at a time in seconds since the epoch."""

    name: str
    at: float
    attributes: dict[str, Value]


@dataclass(slots=True)
class Span:
    """A part of a job, in seconds since the epoch. `key` is its name within the trace, the same each time."""

    name: str
    key: str
    start: float
    end: float
    parent: "Span | None"
    attributes: dict[str, Value] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    error: str | None = None


def trace_id_of(job_id: str) -> int:
    """The 128-bit id of a job's trace: whoever knows the job finds its trace."""
    return int.from_bytes(hashlib.sha256(f"framefit job {job_id}".encode()).digest()[:16]) or 1


def span_id_of(job_id: str, span: Span) -> int:
    """The 64-bit id of a span: sent twice, it stays one span."""
    return int.from_bytes(hashlib.sha256(f"framefit span {job_id} {span.key}".encode()).digest()[:8]) or 1


def spans_of(events: Sequence[Event]) -> list[Span]:
    """The spans of a job's last run: from when it was queued to the last `finished` event, parents first.

    Returns an empty list without such an event. If the run's first events were deleted, the spans cover the
    rest.
    """
    ends = [place for place, event in enumerate(events) if event.kind == "finished"]
    if not ends:
        return []
    begin = ends[-2] + 1 if len(ends) > 1 else 0
    run = [event for event in events[begin : ends[-1] + 1] if event.kind != "webhook"]
    return _Run(run).spans


class _Run:
    """Walks over the events of a run with the spans that are open."""

    def __init__(self, events: Sequence[Event]) -> None:
        first, last = events[0], events[-1]
        self.spans: list[Span] = []
        self._job = self._open(JOB, first, None)
        self._queued: Span | None = None
        self._attempt: Span | None = None
        self._stage: Span | None = None
        self._chunk_from = first.at
        for event in events:
            self._take(event)
        self._close(last.at)
        self._job.end = last.at
        self._job.attributes |= {"framefit.job.id": last.job_id, **_flat("", last.data)}
        error = last.data.get("error")
        if isinstance(error, Mapping):
            self._job.error = str(error.get("code"))
        elif last.data.get("outcome") == JobStatus.FAILED:
            self._job.error = "failed"

    def _open(self, name: str, event: Event, parent: Span | None) -> Span:
        span = Span(name, f"{name} {event.seq}", event.at, event.at, parent)
        self.spans.append(span)
        return span

    def _close(self, at: float) -> None:
        """End the attempt with its stage, or the wait in the queue."""
        for span in (self._queued, self._stage, self._attempt):
            if span is not None:
                span.end = max(span.start, at)
        self._queued = self._stage = self._attempt = None

    def _take(self, event: Event) -> None:
        kind = event.kind
        if kind == "claimed":
            self._close(event.at)
            self._attempt = self._open(ATTEMPT, event, self._job)
            self._attempt.attributes |= _flat("", event.data)
            return
        if kind == "requeued" and self._attempt is not None:
            self._attempt.attributes |= _flat("requeued.", event.data)
        if kind in _QUEUED_BY:
            self._close(event.at)
            self._queued = self._open(QUEUED, event, self._job)
        stage = event.data.get("stage")
        if kind in ("stage", "progress", "waiting_for_memory") and isinstance(stage, str):
            self._enter(stage, event)
        if kind == "plan":
            self._chunk_from = event.at
        if kind == "chunk":
            self._add_chunk(event)
        if kind not in _NOT_NOTED and kind != "finished":
            within = self._stage or self._attempt or self._queued or self._job
            within.moments.append(Moment(kind, event.at, _flat("", event.data)))

    def _enter(self, stage: str, event: Event) -> None:
        if self._attempt is None or (self._stage is not None and self._stage.name == stage):
            return
        if self._stage is not None:
            self._stage.end = event.at
        self._stage = self._open(stage, event, self._attempt)
        self._chunk_from = event.at

    def _add_chunk(self, event: Event) -> None:
        chunk = self._open(CHUNK, event, self._stage or self._attempt)
        chunk.start, chunk.end = min(self._chunk_from, event.at), event.at
        chunk.attributes |= _flat("", event.data)
        self._chunk_from = event.at


def _flat(prefix: str, data: Mapping[str, object]) -> dict[str, Value]:
    """The values of nested data as attributes, by dotted names. Lists are left out."""
    found: dict[str, Value] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix}{name}.", value)
        elif isinstance(value, str | bool | int | float):
            found[f"framefit.{prefix}{name}"] = value
    return found
