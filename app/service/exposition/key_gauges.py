"""Whether the keys file is in force as it is, as a gauge. Knows no HTTP."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.service.keys import LiveKeys


class KeysFileGauge(Collector):
    """`framefit_keys_file_valid`: 0 while the file cannot be used and the keys before it are in force."""

    def __init__(self, keys: LiveKeys) -> None:
        self._keys = keys

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the value is known at a scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield whether the keys file is valid, as it was read last."""
        text = "Whether the keys file could be used when it was last read; if not, the keys before it stay."
        yield GaugeMetricFamily("framefit_keys_file_valid", text, value=int(self._keys.file_is_valid))
