"""The values of counters and histograms as JSON, and back: what a snapshot of the counters holds.

It is made from the metrics themselves, so a metric needs nothing here. A metric that the state does not know
starts at zero, and one that is gone is left out. Series of before a label was added go on with that label
empty, which Prometheus takes for none. A metric that lost a label starts at zero. If a histogram has other
buckets, each old bucket's observations go to the first new one that reaches as far.

The client library can read its values but not set those of a histogram, so that some of its private names
are used here.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import Counter, Histogram

from app.jobs import Json

Metric = Counter | Histogram


def state_of(metrics: Mapping[str, Metric]) -> Json:
    """Return the values of every series of `metrics`, which are given by name."""
    return {name: _state_of(metric) for name, metric in metrics.items()}


def _state_of(metric: Metric) -> Json:
    series: list[Any] = []
    for labels, child in _children(metric):
        if isinstance(child, Histogram):
            series.append([labels, child._sum.get(), [bucket.get() for bucket in child._buckets]])
        else:
            series.append([labels, child._value.get()])
    state: Json = {"labels": list(metric._labelnames), "series": series}
    if isinstance(metric, Histogram):
        state["bounds"] = metric._upper_bounds[:-1]  # without infinity, which JSON does not have
    return state


def _children(metric: Metric) -> Iterator[tuple[list[str], Metric]]:
    if not metric._labelnames:
        yield [], metric
        return
    for sample_labels in _label_values(metric):
        yield list(sample_labels), metric.labels(*sample_labels)


def _label_values(metric: Metric) -> list[tuple[str, ...]]:
    """Return the label values of every series that exists."""
    samples = (sample for family in metric.collect() for sample in family.samples)
    found = (tuple(sample.labels[name] for name in metric._labelnames) for sample in samples)
    return list(dict.fromkeys(found))


def reset(metrics: Mapping[str, Metric]) -> None:
    """Remove every labelled series; set the others to zero."""
    for metric in metrics.values():
        if metric._labelnames:
            metric.clear()
        else:
            _set(metric, 0.0, [0.0] * len(metric._buckets) if isinstance(metric, Histogram) else [])


def restore(metrics: Mapping[str, Metric], state: Json) -> None:
    """Set the series of `metrics` to the values of a state; series that it does not have stay as they are.

    Raises `ValueError`, `TypeError` or `KeyError` if it is no state.
    """
    for name, metric in metrics.items():
        stored = state.get(name)
        if stored is None or not set(stored["labels"]) <= set(metric._labelnames):
            continue
        if isinstance(metric, Histogram) != ("bounds" in stored):
            continue
        for labels, value, *counts in stored["series"]:
            by_name = dict(zip(stored["labels"], labels, strict=True))
            values = [by_name.get(each, "") for each in metric._labelnames]
            child = metric.labels(*values) if values else metric
            if isinstance(metric, Histogram):
                counts = _placed(stored["bounds"], counts[0], metric._upper_bounds[:-1])
            _set(child, value, counts)


def _placed(bounds: list[float], counts: list[float], new_bounds: list[float]) -> list[float]:
    """Return the counts of old buckets in new ones; the last bucket of both has no bound."""
    placed = [0.0] * (len(new_bounds) + 1)
    for bound, count in zip([*bounds, float("inf")], counts, strict=True):
        placed[bisect_left(new_bounds, bound)] += count
    return placed


def _set(child: Metric, value: float, counts: list[float]) -> None:
    if not isinstance(child, Histogram):
        child._value.set(float(value))
        return
    child._sum.set(float(value))
    for bucket, count in zip(child._buckets, counts, strict=True):
        bucket.set(float(count))
