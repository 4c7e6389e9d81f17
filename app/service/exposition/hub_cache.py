"""The disk of downloaded weights, as metrics. Imports the hub's client for its folder only."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


def hub_cache() -> Path:
    """Return the folder in which the Hugging Face hub's client keeps weights; it need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _disk_usage(folder: Path) -> tuple[int, int, int] | None:
    try:
        return shutil.disk_usage(folder)
    except OSError:  # absent, or it may not be entered
        return None


class HubCacheGauges(Collector):
    """Reads the disk of the cache at each scrape."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering looks at nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the disk of the folder, or of the first folder above it that exists."""
        usage = next(filter(None, map(_disk_usage, (self._folder, *self._folder.parents))), None)
        if usage is None:
            return
        total_bytes, _, free_bytes = usage
        yield GaugeMetricFamily(
            "framefit_hub_cache_free_bytes",
            "Free bytes on the disk to which weights are downloaded.",
            value=free_bytes,
        )
        yield GaugeMetricFamily(
            "framefit_hub_cache_total_bytes",
            "Size of the disk to which weights are downloaded.",
            value=total_bytes,
        )
