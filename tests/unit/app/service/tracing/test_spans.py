"""A job's trace, made of its events: each second of it lies in exactly one place."""

from typing import Any

import pytest

from app.jobs import Event
from app.service.tracing.spans import Span, span_id_of, spans_of, trace_id_of

DONE = {
    "outcome": "succeeded",
    "model": "tiny",
    "decode": {"strategy": "chunked", "exact": True},
    "error": None,
}


def history(*events: tuple[float, str, dict[str, Any]]) -> list[Event]:
    return [Event(seq, "job-1", kind, at, data) for seq, (at, kind, data) in enumerate(events, 1)]


def told(spans: list[Span]) -> list[tuple[str, str | None, float, float]]:
    return [(one.name, one.parent and one.parent.name, one.start, one.end) for one in spans]


UNDISTURBED = history(
    (100.0, "accepted", {"model": "tiny"}),
    (104.0, "claimed", {"worker_id": "host/cuda:0/1", "attempt": 1}),
    (104.1, "stage", {"stage": "loading", "progress": 0.0}),
    (106.0, "stage", {"stage": "denoising", "progress": 0.02}),
    (107.0, "progress", {"stage": "denoising", "progress": 0.4, "step": 1}),
    (109.0, "stage", {"stage": "decoding", "progress": 0.8}),
    (109.5, "plan", {"stage": "decoding", "strategy": "chunked", "tiles": {"rows": 1}, "detail": "fits"}),
    (110.5, "chunk", {"stage": "decoding", "latent_frames": 2}),
    (112.0, "chunk", {"stage": "decoding", "latent_frames": 1}),
    (112.0, "stage", {"stage": "encoding", "progress": 0.97}),
    (113.0, "finished", DONE),
    (113.5, "webhook", {"state": "delivered"}),
)


def test_a_job_is_queued_attempted_and_goes_through_its_stages() -> None:
    assert told(spans_of(UNDISTURBED)) == [
        ("job", None, 100.0, 113.0),
        ("queued", "job", 100.0, 104.0),
        ("attempt", "job", 104.0, 113.0),
        ("loading", "attempt", 104.1, 106.0),
        ("denoising", "attempt", 106.0, 109.0),
        ("decoding", "attempt", 109.0, 112.0),
        ("decode chunk", "decoding", 109.5, 110.5),
        ("decode chunk", "decoding", 110.5, 112.0),
        ("encoding", "attempt", 112.0, 113.0),
    ]


def test_the_plan_is_told_with_its_numbers_where_it_was_made() -> None:
    decoding = next(span for span in spans_of(UNDISTURBED) if span.name == "decoding")
    (plan,) = decoding.moments
    assert (plan.name, plan.at) == ("plan", 109.5)
    assert plan.attributes["framefit.strategy"] == "chunked"
    assert plan.attributes["framefit.tiles.rows"] == 1
    job = spans_of(UNDISTURBED)[0]
    assert job.attributes["framefit.decode.strategy"] == "chunked"
    assert job.attributes["framefit.job.id"] == "job-1"
    assert job.error is None


def test_an_attempt_that_was_killed_and_a_wait_for_memory_are_seen() -> None:
    spans = spans_of(
        history(
            (0.0, "accepted", {}),
            (1.0, "claimed", {"attempt": 1}),
            (1.0, "stage", {"stage": "denoising"}),
            (5.0, "requeued", {"reason": "worker_died"}),
            (9.0, "claimed", {"attempt": 2}),
            (9.0, "stage", {"stage": "denoising"}),
            (10.0, "waiting_for_memory", {"stage": "waiting_for_memory", "needed_bytes": 7}),
            (12.0, "progress", {"stage": "denoising", "step": 2}),
            (14.0, "finished", {"outcome": "failed", "error": {"code": "out_of_memory", "message": "none"}}),
        )
    )
    assert told(spans) == [
        ("job", None, 0.0, 14.0),
        ("queued", "job", 0.0, 1.0),
        ("attempt", "job", 1.0, 5.0),
        ("denoising", "attempt", 1.0, 5.0),
        ("queued", "job", 5.0, 9.0),
        ("attempt", "job", 9.0, 14.0),
        ("denoising", "attempt", 9.0, 10.0),
        ("waiting_for_memory", "attempt", 10.0, 12.0),
        ("denoising", "attempt", 12.0, 14.0),
    ]
    assert spans[0].error == "out_of_memory"
    assert spans[2].attributes["framefit.requeued.reason"] == "worker_died"


def test_a_job_that_ends_a_second_time_has_spans_of_the_second_run_only() -> None:
    again = history(
        (0.0, "accepted", {}),
        (1.0, "finished", DONE),
        (8.0, "queued_again", {"reason": "redecode"}),
        (9.0, "claimed", {"attempt": 1}),
        (12.0, "finished", DONE),
    )
    assert told(spans_of(again)) == [
        ("job", None, 8.0, 12.0),
        ("queued", "job", 8.0, 9.0),
        ("attempt", "job", 9.0, 12.0),
    ]


@pytest.mark.parametrize("length", range(len(UNDISTURBED)))
def test_a_history_whose_beginning_was_deleted_still_has_its_rest(length: int) -> None:
    left = UNDISTURBED[length:]
    spans = spans_of(left)
    assert bool(spans) == any(event.kind == "finished" for event in left)
    places = {id(span): place for place, span in enumerate(spans)}
    assert all(span.start <= span.end for span in spans)
    assert all(span.parent is None or places[id(span.parent)] < place for place, span in enumerate(spans))


def test_ids_are_the_same_each_time_and_differ_within_a_job() -> None:
    once, twice = spans_of(UNDISTURBED), spans_of(UNDISTURBED)
    ids = [span_id_of("job-1", span) for span in once]
    assert ids == [span_id_of("job-1", span) for span in twice]
    assert len(set(ids)) == len(ids)
    assert trace_id_of("job-1") != trace_id_of("job-2")
