"""The values of counters and histograms as JSON: what another version of the program makes of them."""

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from app.service.exposition.metric_state import reset, restore, state_of

Metrics = dict[str, Counter | Histogram]


def counter(*labels: str, name: str = "ends") -> Metrics:
    return {name: Counter(name, "text", labels, registry=None)}


def histogram(*buckets: float, labels: tuple[str, ...] = ()) -> Metrics:
    return {"seconds": Histogram("seconds", "text", labels, buckets=buckets, registry=None)}


def shown(metrics: Metrics) -> str:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    for metric in metrics.values():
        registry.register(metric)
    return generate_latest(registry).decode()


def through_json(metrics: Metrics) -> Any:
    return json.loads(json.dumps(state_of(metrics), allow_nan=False))


def test_values_are_the_same_to_the_last_bit() -> None:
    before = {
        **counter("model", "outcome"),
        **histogram(0.1, 1.0, labels=("stage",)),
        **counter(name="regret"),
    }
    for number in range(1, 50):
        before["ends"].labels("a", "b").inc(0.1 * number)
        before["seconds"].labels("x").observe(0.03 * number)  # type: ignore[union-attr]
        before["regret"].inc(1 / number)  # type: ignore[union-attr]
    after = {
        **counter("model", "outcome"),
        **histogram(0.1, 1.0, labels=("stage",)),
        **counter(name="regret"),
    }
    restore(after, through_json(before))
    assert shown(after) == shown(before)


def test_a_new_metric_starts_at_zero_and_one_that_is_gone_is_dropped() -> None:
    before = counter(name="old")
    before["old"].inc(3)  # type: ignore[union-attr]
    after = {**counter("model", name="new"), **counter(name="old")}
    restore(after, through_json(before))
    assert state_of(after)["new"]["series"] == []
    assert state_of(after)["old"]["series"] == [[[], 3.0]]
    restore(rest := counter(name="another"), through_json(before))
    assert state_of(rest)["another"]["series"] == [[[], 0.0]]


def test_series_of_before_a_label_was_added_go_on_with_it_empty() -> None:
    before = {**counter("model"), **histogram(1, 2)}
    before["ends"].labels("a").inc(3)  # type: ignore[union-attr]
    before["seconds"].observe(1.5)  # type: ignore[union-attr]
    after = {**counter("outcome", "model", "host"), **histogram(1, 2, labels=("model",))}
    restore(after, through_json(before))
    assert state_of(after)["ends"]["series"] == [[["", "a", ""], 3.0]]
    assert state_of(after)["seconds"]["series"] == [[[""], 1.5, [0, 1, 0]]]


def test_a_metric_with_other_labels_or_of_another_kind_starts_at_zero() -> None:
    before = counter("model")
    before["ends"].labels("a").inc()
    restore(after := counter("vae"), through_json(before))
    assert state_of(after)["ends"]["series"] == []
    of_other_kind: Metrics = {"ends": Histogram("ends", "text", ["model"], registry=None)}
    restore(of_other_kind, through_json(before))
    assert state_of(of_other_kind)["ends"]["series"] == []


@pytest.mark.parametrize(
    ("buckets", "counts"),
    [
        ((1, 5, 10), [1, 1, 1, 1]),
        ((1, 10), [1, 2, 1]),
        ((0.5, 1, 2, 5, 10, 20), [0, 1, 0, 1, 1, 0, 1]),
        ((3, 7), [1, 1, 2]),
    ],
)
def test_other_buckets_get_the_observations_of_the_old_ones_and_none_is_lost(
    buckets: tuple[float, ...], counts: list[float]
) -> None:
    before = histogram(1, 5, 10)
    for value in (0.7, 4, 8, 100):
        before["seconds"].observe(value)  # type: ignore[union-attr]
    restore(after := histogram(*buckets), through_json(before))
    assert state_of(after)["seconds"]["series"] == [[[], 112.7, counts]]


def test_a_reset_leaves_nothing_of_what_was_counted() -> None:
    metrics = {**counter("model"), **histogram(1, 2), **counter(name="regret")}
    empty = state_of(metrics)
    metrics["ends"].labels("a").inc()
    metrics["seconds"].observe(1)  # type: ignore[union-attr]
    metrics["regret"].inc()  # type: ignore[union-attr]
    reset(metrics)
    assert state_of(metrics) == empty


@pytest.mark.parametrize("state", [{"ends": 1}, {"ends": {"labels": ["model"], "series": [["a"]]}}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises((TypeError, ValueError, KeyError)):
        restore(counter("model"), state)
