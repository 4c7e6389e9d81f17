"""Counters are stored with the place in the events that they count up to, and go on from there."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from scraped import total
from sqlalchemy import text

from app.jobs import Event, JobSpec, JobStatus
from app.scheduling.eta import RunTimes
from app.service.exposition.exporter import Exporter
from app.service.exposition.metrics import ServiceMetrics
from app.store import JobStore, StoreUnavailable

MODELS = {"tiny": "AutoencoderKLLTXVideo"}
KEEP_SECONDS = 1000.0
OpenStore = Callable[..., JobStore]


class Steady:
    """A process's own clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Process:
    """What an API process does with events, without its threads."""

    def __init__(self, store: JobStore, clock: Any, metrics: ServiceMetrics | None = None) -> None:
        self.store, self.clock, self.steady = store, clock, Steady()
        self.metrics = metrics or ServiceMetrics(MODELS)
        self.run_times = RunTimes()
        parts = {"metrics": self.metrics, "run_times": self.run_times}
        self.exporter = Exporter(store, parts, keep_seconds=KEEP_SECONDS, clock=self.steady)
        self.read = 0
        self.seen = self.exporter.begin()

    def turn(self, limit: int = 1000) -> None:
        """One turn of the feed."""
        events = self.store.events_after(self.seen, limit)
        self.read += len(events)
        self.metrics.apply(events)
        self.run_times.apply(events)
        seen = events[-1].seq if events else self.seen
        self.seen = self.exporter.turn(seen, at_end=len(events) < limit)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, for this process and for the database."""
        self.clock.now += seconds
        self.steady.now += seconds

    def catch_up(self) -> None:
        """Count every event, and store the counters."""
        self.turn()
        self.pass_time(31)
        self.turn()
        self.turn()

    def text(self) -> str:
        """What /metrics shows of counters."""
        return "\n".join([*lines_of(self.metrics, counters=self.exporter.exports_counters), ""])


def lines_of(metrics: ServiceMetrics, *, counters: bool = True) -> list[str]:
    lines = metrics.render(counters=counters).decode().splitlines()
    own = ("framefit_starting ",)  # the process's, not counted
    return sorted(line for line in lines if line.startswith("framefit_") and not line.startswith(own))


@pytest.fixture
def run_jobs(store: JobStore, make_spec: Callable[..., JobSpec]) -> Callable[[int], None]:
    """Runs jobs to their ends, each with every event that is counted."""

    def run(number: int) -> None:
        for _ in range(number):
            job = store.add(make_spec(), b"image")
            claim = store.claim("host/cpu/1")
            assert claim is not None
            key = (job.id, claim.token)
            assert store.checkpoint(*key, "latents", {"exact": True})
            assert store.event(*key, "plan", {"strategy": "chunked", "reason": "fastest_that_fits"})
            decode = {"strategy": "chunked", "frames_per_chunk": 2, "seconds": 0.3, "regret_seconds": 0.1}
            durations = {"denoising": 1.1, "decoding": 0.3}
            assert store.finish(*key, status=JobStatus.SUCCEEDED, decode=decode, durations=durations)

    return run


def delete_events(store: JobStore) -> None:
    store._database.run(lambda tx: tx.execute(text("delete from events")).rowcount)


def test_a_restarted_process_shows_the_same_counters_and_reads_no_event_twice(
    store: JobStore, clock: Any, run_jobs: Callable[[int], None]
) -> None:
    run_jobs(5)
    first = Process(store, clock)
    first.turn()
    assert total(first.text(), "framefit_jobs_total", outcome="succeeded") == 5
    first.exporter.close(first.seen)
    delete_events(store)
    second = Process(store, clock)
    second.turn()
    assert (second.read, second.seen) == (0, first.seen)
    assert second.text().splitlines() == lines_of(first.metrics)
    assert second.run_times.expected("tiny") == first.run_times.expected("tiny") is not None
    run_jobs(1)
    second.turn()
    assert total(second.text(), "framefit_jobs_total", outcome="succeeded") == 6


def test_counters_that_are_stored_between_any_two_events_go_on_as_if_nothing_had_happened() -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("accepted", {"model": "tiny"}),
        ("claimed", {"queued_seconds": 0.1, "model": "tiny"}),
        ("denoised", {"exact": True}),
        ("plan", {"strategy": "chunked", "reason": "fastest_that_fits"}),
        ("fallback", {"from": "chunked", "to": "per_frame"}),
        ("finished", {"model": "tiny", "outcome": "succeeded", "duration_seconds": 1.1}),
    ]
    events = [
        Event(number, f"job-{(number - 1) // len(kinds)}", kind, 0.0, data)
        for number, (kind, data) in enumerate(2 * kinds, start=1)
    ]
    whole = ServiceMetrics(MODELS)
    whole.apply(events)
    for number in range(len(events) + 1):
        before, after = ServiceMetrics(MODELS), ServiceMetrics(MODELS)
        before.apply(events[:number])
        after.restore(json.loads(json.dumps(before.state())))
        after.apply(events[number:])
        assert lines_of(after) == lines_of(whole)
    assert whole.state()["model_of_job"] == {}


def test_only_one_process_exports_and_the_next_one_does_when_its_lease_has_ended(
    open_store: OpenStore, clock: Any, run_jobs: Callable[[int], None]
) -> None:
    run_jobs(2)
    first, second = Process(open_store(), clock), Process(open_store(), clock)
    for one in (first, second):
        one.turn()
    assert [one.exporter.exports_counters for one in (first, second)] == [True, False]
    assert [one.exporter.starting for one in (first, second)] == [False, False]
    assert second.text() == ""
    shown = first.text()
    # The first process is suspended: it stops believing in its lease before the second gets it.
    first.steady.now += 16
    assert not first.exporter.exports_counters
    second.pass_time(16)
    second.turn()
    assert not second.exporter.exports_counters, "first it counts what the other may have counted"
    second.turn()
    assert second.text() == shown
    first.turn()
    first.turn()
    assert [one.exporter.exports_counters for one in (first, second)] == [False, True]
    second.exporter.close(second.seen)
    first.pass_time(3)
    first.turn()
    first.turn()
    assert first.text() == shown, "what is given up is taken at the next look"


def test_a_process_that_was_killed_is_followed_at_once_by_one_on_the_same_machine(
    open_store: OpenStore, clock: Any, run_jobs: Callable[[int], None]
) -> None:
    run_jobs(1)
    first = Process(open_store(), clock)
    first.turn()
    rename = text("update exporters set process = :gone")
    gone = first.exporter._process.rsplit("/", 1)[0] + "/1"  # the process id belongs to another process now
    first.store._database.run(lambda tx: tx.execute(rename, {"gone": gone}).rowcount)
    second = Process(open_store(), clock)
    second.turn()
    assert second.exporter.exports_counters


@pytest.mark.parametrize("renews", [True, False])
def test_a_process_starts_until_the_exporter_elsewhere_is_seen_alive_or_its_lease_has_ended(
    open_store: OpenStore, clock: Any, run_jobs: Callable[[int], None], renews: bool
) -> None:
    run_jobs(1)
    first = Process(open_store(), clock)
    first.turn()
    first.exporter._process = "another machine/1/1"
    first.pass_time(6)
    first.turn()
    second = Process(open_store(), clock)
    second.turn()
    assert second.exporter.starting, "a scrape now would miss the counters"
    for _ in range(8):
        second.pass_time(2.1)
        if renews:
            first.steady.now += 2.1
            first.turn()
        second.turn()
    second.turn()
    assert [second.exporter.starting, second.exporter.exports_counters] == [False, not renews]


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_one_process_exports_soon_after_the_databases_clock_has_jumped(
    open_store: OpenStore, clock: Any, run_jobs: Callable[[int], None], jump: float
) -> None:
    run_jobs(1)
    both = [Process(open_store(), clock), Process(open_store(), clock)]
    for one in both:
        one.turn()
    clock.now += jump
    for _ in range(6):
        clock.now += 1
        for one in both:
            one.steady.now += 1
            one.turn()
    assert sum(one.exporter.exports_counters for one in both) == 1


def test_a_process_that_missed_deleted_events_starts_again_from_the_stored_counters(
    open_store: OpenStore, clock: Any, run_jobs: Callable[[int], None]
) -> None:
    first, second = Process(open_store(), clock), Process(open_store(), clock)
    run_jobs(4)
    first.catch_up()
    shown = first.text()
    first.pass_time(KEEP_SECONDS + 1)
    first.turn()
    first.turn()
    assert first.exporter.retire_events() == 4 * 5
    first.exporter.close(first.seen)
    second.steady.now += 3
    second.turn()
    second.turn()
    assert second.text() == shown


def test_a_failure_right_after_the_duty_was_gained_is_no_reason_to_export_old_counters(
    store: JobStore, clock: Any, run_jobs: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_jobs(1)
    first = Process(store, clock)
    first.catch_up()
    second = Process(store, clock)
    second.turn()
    run_jobs(3)
    first.catch_up()
    first.exporter.close(first.seen)
    clock.now += KEEP_SECONDS
    delete_events(store)
    asked = 0

    def retired() -> int:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise StoreUnavailable("busy")
        return first.seen

    monkeypatch.setattr(store, "last_retired_event", retired)
    second.steady.now += 100
    with pytest.raises(StoreUnavailable):
        second.turn()
    assert not second.exporter.exports_counters
    second.turn()
    second.turn()
    assert second.exporter.exports_counters
    assert total(second.text(), "framefit_jobs_total", outcome="succeeded") == 4


def test_events_that_are_not_in_stored_counters_are_not_deleted(
    store: JobStore, clock: Any, run_jobs: Callable[[int], None]
) -> None:
    process = Process(store, clock)
    process.turn()
    run_jobs(1)
    process.pass_time(KEEP_SECONDS + 1)
    process.turn()
    process.turn()
    seen = process.seen
    assert seen > 0
    run_jobs(1)
    process.clock.now += KEEP_SECONDS + 1
    assert process.exporter.retire_events() == 5
    assert [event.seq for event in store.events_after(0)] == list(range(seen + 1, seen + 6))


@pytest.mark.parametrize(
    ("column", "value"),
    [("data", "{}"), ("seq", 10**12), ("checksum", "x")],
)
def test_damaged_counters_are_counted_again_from_the_events_that_are_left_with_one_warning(
    store: JobStore,
    clock: Any,
    run_jobs: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
    column: str,
    value: object,
) -> None:
    run_jobs(3)
    first = Process(store, clock)
    first.turn()
    shown = first.text()
    first.exporter.close(first.seen)
    damage = text(f"update counter_snapshots set {column} = :value")
    store._database.run(lambda tx: tx.execute(damage, {"value": value}).rowcount)
    with caplog.at_level(logging.WARNING):
        second = Process(store, clock)
        second.catch_up()
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert warnings[0].startswith("counters_rebuilt reason=")
    assert second.text() == shown
    second.exporter.close(second.seen)
    caplog.clear()
    third = Process(store, clock)
    assert (third.seen, caplog.records) == (second.seen, [])


def test_every_counter_and_histogram_of_the_service_is_stored() -> None:
    metrics = ServiceMetrics(MODELS)
    counted = {
        family.name
        for family in metrics.registry.collect()
        if family.type in ("counter", "histogram") and family.name.startswith("framefit_")
    }
    assert counted == set(metrics.state()["metrics"])


def test_counters_of_another_version_are_counted_again(
    store: JobStore, clock: Any, run_jobs: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_jobs(1)
    monkeypatch.setattr("app.service.exposition.exporter.VERSION", 2)
    first = Process(store, clock)
    first.turn()
    first.exporter.close(first.seen)
    monkeypatch.undo()
    assert Process(store, clock).seen == 0
