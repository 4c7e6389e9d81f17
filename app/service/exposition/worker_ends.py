"""How often the workers of this data folder's service ended, as a metric. Knows no database."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.service.ends.counts import read_counts


class WorkerEnds(Collector):
    """Reads the counts that the service's parent keeps, at each scrape."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering looks at nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the file."""
        family = CounterMetricFamily(
            "framefit_worker_ends",
            "Worker processes that ended, other than by a stop of the service, by device and reason.",
            labels=["gpu", "reason"],
        )
        for gpu, reasons in sorted(read_counts(self._data_dir).items()):
            for reason, count in sorted(reasons.items()):
                family.add_metric([gpu, reason], count)
        yield family
