"""The metrics stay as small as they began however many jobs pass, and Prometheus' own linter accepts them."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.jobs import Event
from app.service.exposition.metrics import ServiceMetrics

MODELS = {"tiny": "AutoencoderKLLTXVideo"}
JOBS = 10_000


def history(first_job: int, jobs: int) -> Iterator[Event]:
    """What the table holds of jobs that each took the same way."""
    kinds = [
        ("accepted", {"model": "tiny"}),
        ("claimed", {"queued_seconds": 1.5, "worker_id": "host/GPU-1/1"}),
        ("preempted", {"priority": 5, "step": 12, "steps": 30}),
        ("requeued", {"reason": "preempted"}),
        ("claimed", {"queued_seconds": 1.5, "worker_id": "host/GPU-1/1"}),
        ("plan", {"strategy": "chunked", "reason": "fastest_that_fits"}),
        ("oom", {"stage": "decoding"}),
        ("nonfinite", {"stage": "decoding", "values": 3, "of": 100}),
        ("spill", {"sign": "slow"}),
        ("held", {"reason": "worker_crashed", "why": "its worker process died 3 times", "max_attempts": 3}),
        ("webhook", {"state": "given_up", "attempts": 8}),
        ("fallback", {"from": "chunked", "to": "per_frame"}),
        ("denoise_fallback", {"from": "resident", "to": "drop_text_encoder"}),
        ("decode_kept", {"reason": "ends_earlier_here"}),
        ("downloaded", {"received_bytes": 1000}),
        (
            "finished",
            {
                "model": "tiny",
                "outcome": "succeeded",
                "duration_seconds": 9.0,
                "durations": {"decoding": 3.0},
                "video": {"frames": 25, "width": 64, "height": 64},
                "decode": {
                    "strategy": "per_frame",
                    "frames_per_chunk": 1,
                    "seconds": 3.0,
                    "device": "cuda:0",
                },
            },
        ),
    ]
    for job in range(first_job, first_job + jobs):
        for index, (kind, data) in enumerate(kinds):
            yield Event(job * len(kinds) + index + 1, f"job-{job}", kind, 0.0, data)


def series(metrics: ServiceMetrics) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, str(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("framefit_")
    }


def test_ten_thousand_jobs_add_no_series_and_none_is_lost_or_counted_twice() -> None:
    metrics = ServiceMetrics(MODELS)
    metrics.apply(history(0, 1))
    names = series(metrics).keys()
    metrics.apply(history(1, JOBS - 1))
    after = series(metrics)
    assert after.keys() == names
    assert sum(value for (name, _), value in after.items() if name == "framefit_jobs_total") == JOBS
    assert not any("job-" in labels for _, labels in names)


def test_counting_the_same_history_in_two_starts_gives_the_same_numbers() -> None:
    events = list(history(0, 50))
    whole, restarted = ServiceMetrics(MODELS), ServiceMetrics(MODELS)
    whole.apply(events)
    for event in events:  # one at a time, as a poller that keeps up sees them
        restarted.apply([event])
    assert series(whole) == series(restarted)


def test_everything_whose_labels_are_known_shows_before_its_first_event() -> None:
    before, after = ServiceMetrics(MODELS), ServiceMetrics(MODELS)
    before.apply(list(history(0, 1))[:2])  # the claim tells the device
    after.apply(history(0, 1))
    fresh = {name for name, _ in series(after).keys() - series(before).keys()}
    fresh = {name for name in fresh if not name.startswith("framefit_decode_duration_seconds")}  # at the plan
    # Reasons are the planner's to name; boards count the first of these too.
    assert fresh == {"framefit_decode_strategy_total", "framefit_jobs_requeued_total"}


def test_what_a_job_did_has_the_labels_of_its_device_and_old_events_without_one_still_count() -> None:
    metrics = ServiceMetrics(MODELS)
    metrics.apply(history(0, 2))
    old = [
        Event(one.seq, "old", one.kind, one.at, {k: v for k, v in one.data.items() if k != "worker_id"})
        for one in history(5, 1)
    ]
    metrics.apply(old)
    decodes = {
        labels: value
        for (name, labels), value in series(metrics).items()
        if name == "framefit_decode_measured_peak_bytes_count" or (name == "framefit_jobs_total" and value)
    }
    at = "('gpu', 'GPU-1'), ('host', 'host'), ('model', 'tiny'), ('outcome', 'succeeded')"
    unknown = "('gpu', ''), ('host', ''), ('model', 'tiny'), ('outcome', 'succeeded')"
    assert decodes[f"[{at}]"] == 2
    assert decodes[f"[{unknown}]"] == 1


def test_a_decode_on_the_cpu_is_not_counted_as_its_cards() -> None:
    metrics = ServiceMetrics(MODELS)
    finished = next(one for one in history(0, 1) if one.kind == "finished")
    decode = {**finished.data["decode"], "device": "cpu", "measured_peak_bytes": 5}
    events = [one for one in history(0, 1) if one.kind != "finished"]
    metrics.apply([*events, Event(99, finished.job_id, "finished", 0.0, {**finished.data, "decode": decode})])
    found = series(metrics)
    name = "framefit_decode_measured_peak_bytes_sum"
    assert found[name, "[('gpu', 'cpu'), ('host', 'host'), ('model', 'tiny')]"] == 5
    assert found[name, "[('gpu', 'GPU-1'), ('host', 'host'), ('model', 'tiny')]"] == 0


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt install prometheus)"
)
def test_prometheus_finds_nothing_to_complain_of_in_the_metrics() -> None:
    metrics = ServiceMetrics(MODELS)
    metrics.apply(history(0, 3))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.render(), capture_output=True, timeout=500
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
