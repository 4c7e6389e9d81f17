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
        ("claimed", {"queued_seconds": 1.5}),
        ("plan", {"strategy": "chunked", "reason": "fastest_that_fits"}),
        ("oom", {"stage": "decoding"}),
        ("nonfinite", {"stage": "decoding", "values": 3, "of": 100}),
        ("spill", {"sign": "slow"}),
        ("held", {"reason": "worker_crashed", "why": "its worker process died 3 times", "max_attempts": 3}),
        ("webhook", {"state": "given_up", "attempts": 8}),
        ("fallback", {"from": "chunked", "to": "per_frame"}),
        (
            "finished",
            {
                "model": "tiny",
                "outcome": "succeeded",
                "duration_seconds": 9.0,
                "durations": {"decoding": 3.0},
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
    after.apply(history(0, 1))
    fresh = {name for name, _ in series(after).keys() - series(before).keys()}
    assert fresh == {"framefit_decode_strategy_total"}  # reasons are the planner's to name


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt install prometheus)"
)
def test_prometheus_finds_nothing_to_complain_of_in_the_metrics() -> None:
    metrics = ServiceMetrics(MODELS)
    metrics.apply(history(0, 3))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.render(), capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
