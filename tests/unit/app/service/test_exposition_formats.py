"""Scrapers get the format that they ask for; a job's id is an exemplar, and never a label."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from app.jobs import Event
from app.service.exposition.formats import Exposition, asked_for
from app.service.exposition.metrics import ServiceMetrics

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (PROMETHEUS, Exposition.OPENMETRICS),
        ("application/openmetrics-text", Exposition.OPENMETRICS),
        ("Application/OpenMetrics-Text; version=1.0.0", Exposition.OPENMETRICS),
        ("", Exposition.PLAIN),
        ("*/*", Exposition.PLAIN),
        ("text/plain", Exposition.PLAIN),
        ("text/html,*/*;q=0.8", Exposition.PLAIN),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.5", Exposition.PLAIN),
        ("application/openmetrics-text;q=0", Exposition.PLAIN),
        ("application/openmetrics-text;q=x", Exposition.PLAIN),
    ],
)
def test_openmetrics_is_for_those_that_prefer_it(accept: str, wanted: Exposition) -> None:
    assert asked_for(accept) is wanted


def history() -> list[Event]:
    decode = {"strategy": "chunked", "frames_per_chunk": 4, "seconds": 1.5, "predicted_peak_bytes": 2**30}
    kinds = [
        ("accepted", {"model": "tiny"}),
        ("claimed", {"worker_id": "host/GPU-1/1", "queued_seconds": 3.0}),
        ("oom", {"stage": "decoding"}),
        (
            "finished",
            {
                "model": "tiny",
                "outcome": "succeeded",
                "duration_seconds": 9.0,
                "durations": {"decoding": 1.5},
                "decode": decode,
            },
        ),
    ]
    return [Event(number, "job-1", kind, 0.0, data) for number, (kind, data) in enumerate(kinds, 1)]


def test_a_jobs_id_is_beside_what_it_counted_in_openmetrics_and_nowhere_in_plain_text() -> None:
    metrics = ServiceMetrics({"tiny": "AutoencoderKLLTXVideo"})
    metrics.apply(history())
    plain, full = (metrics.render(encode=each.write).decode() for each in Exposition)
    assert "job-1" not in plain
    exemplars = {
        sample.name: sample.exemplar.labels
        for family in openmetrics_families(full)
        for sample in family.samples
        if sample.exemplar
    }
    for name in ("jobs_total", "oom_total", "job_queue_seconds_bucket", "decode_duration_seconds_bucket"):
        assert exemplars[f"framefit_{name}"] == {"job_id": "job-1"}
    assert not any(
        "job-1" in str(sample.labels) for one in openmetrics_families(full) for sample in one.samples
    )


def test_both_formats_have_the_same_numbers() -> None:
    metrics = ServiceMetrics({"tiny": "AutoencoderKLLTXVideo"})
    metrics.apply(history())
    plain, full = (metrics.render(encode=each.write).decode() for each in Exposition)
    found = [
        {
            (sample.name, str(sorted(sample.labels.items()))): sample.value
            for family in parse(text)
            for sample in family.samples
            if sample.name.startswith("framefit_")
        }
        for parse, text in ((text_string_to_metric_families, plain), (openmetrics_families, full))
    ]
    assert found[0] == found[1]
    assert found[0]
