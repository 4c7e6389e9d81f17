"""The gauges of the job table, of workers, of devices and of the disk, read at each scrape.

None can be stale. Of several API processes that share a database, each shows its part: `Duties`. This file
knows no HTTP and no SQL.
"""

import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from adaptive.device.nvml import GpuInfo
from adaptive.version import __version__
from app.jobs import JobStatus, WorkerRow
from app.service.gpus.gauges import (
    Card,
    by_card,
    cards_of,
    device_info,
    memory_gauges,
    unused_gpus,
    worker_roles,
)

SEEN_SECONDS = 24 * 3600.0  # a device is shown so long after its worker's last heartbeat
LIBRARIES = ("torch", "diffusers")
ReadGpus = Callable[[], Sequence[GpuInfo]]


class Source(Protocol):
    """The part of the job store that the gauges read."""

    def counts(self) -> Mapping[JobStatus, int]:
        """Return the number of jobs by status."""
        ...

    def oldest_queued_seconds(self) -> float:
        """Return how long the longest waiting job has been in the queue; 0 if none waits."""
        ...

    def workers(self, *, within_seconds: float) -> list[WorkerRow]:
        """Return workers whose last heartbeat is at most `within_seconds` old."""
        ...


@dataclass(frozen=True, slots=True)
class Duties:
    """Which gauges of what several API processes see a process exports, so that sums over them are right.

    `store`: those of the job table. `gpus`: those of its host's GPUs. `other_hosts`: hosts on which another
    process exports the GPUs.
    """

    store: bool = True
    gpus: bool = True
    other_hosts: frozenset[str] = frozenset()

    def of_workers(self, workers: list[WorkerRow], own_host: str) -> list[WorkerRow]:
        """Return the workers whose devices' memory this process exports."""
        return [
            worker
            for worker in workers
            if (self.gpus if worker.host == own_host else self.store and worker.host not in self.other_hosts)
        ]


class LiveGauges(Collector):
    """Gauges that are read at each scrape."""

    def __init__(
        self,
        source: Source,
        gpus: ReadGpus,
        *,
        alive_seconds: float,
        data_dir: Path,
        duties: Callable[[], Duties] = Duties,
        host: str | None = None,
    ) -> None:
        """`duties` says which gauges this process exports of those that others could, too.

        `host` is the name of this host, the machine's own by default.
        """
        self._source = source
        self._gpus = gpus
        self._alive_seconds = alive_seconds
        self._data_dir = data_dir
        self._duties = duties
        self._host = host or socket.gethostname()

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not read the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the job table, the workers and the driver."""
        duties = self._duties()
        workers = self._source.workers(within_seconds=SEEN_SECONDS)
        alive = self._source.workers(within_seconds=self._alive_seconds)
        cards = cards_of([*workers, *alive])
        yield GaugeMetricFamily(
            "framefit_exporter",
            "Whether this process exports the job table's metrics: 1 for one API process of a database.",
            value=int(duties.store),
        )
        if duties.store:
            yield from self._of_store(workers, alive, cards)
        own = duties.of_workers(alive, self._host)
        found = self._gpus() if duties.gpus else ()
        yield from memory_gauges(found, own, cards, self._host)
        yield unused_gpus(self._data_dir)
        yield from _disk_gauges(self._data_dir)
        yield build_info()

    def _of_store(
        self, workers: list[WorkerRow], alive: list[WorkerRow], cards: Mapping[str, Card]
    ) -> Iterator[Metric]:
        counts = self._source.counts()
        for name, status in (("queued", JobStatus.QUEUED), ("running", JobStatus.RUNNING)):
            yield GaugeMetricFamily(f"framefit_jobs_{name}", f"Jobs {name} now.", value=counts[status])
        yield GaugeMetricFamily(
            "framefit_jobs_oldest_queued_seconds",
            "How long the longest waiting job has been queued; 0: none waits.",
            value=round(self._source.oldest_queued_seconds(), 3) if counts[JobStatus.QUEUED] else 0.0,
        )
        yield device_info(cards.values(), workers)
        # One a device: two services of one host may use the same.
        up = {cards[worker.id]: 0.0 for worker in workers} | {cards[worker.id]: 1.0 for worker in alive}
        yield by_card(
            "worker_up", "Whether a device's worker has a recent heartbeat.", dict(sorted(up.items()))
        )
        busy = {cards[worker.id]: float(worker.job_id is not None) for worker in alive}
        yield by_card("worker_busy", "Whether a device's worker runs a job.", busy)
        paused = {cards[worker.id]: float(worker.state == "paused") for worker in alive}
        yield by_card("worker_paused", "Whether a device is paused and claims no job.", paused)
        started = {cards[worker.id]: worker.started_at for worker in alive}
        yield by_card(
            "worker_start_time_seconds", "When a device's worker started; it changes with each.", started
        )
        yield worker_roles(alive, cards)
        yield _margin_gauge(alive, cards)


def build_info() -> Metric:
    """Return the versions of Framefit, Python and the large libraries, which are not imported."""
    versions = {
        "version": __version__,
        "python": python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }
    family = GaugeMetricFamily("framefit_build_info", "The versions that run.", labels=list(versions))
    family.add_metric(list(versions.values()), 1)
    return family


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _margin_gauge(alive: list[WorkerRow], cards: Mapping[str, Card]) -> Metric:
    """The learned margins of decodes above their live bytes, as each device's worker last reported them."""
    family = GaugeMetricFamily(
        "framefit_decode_margin_ratio",
        "Learned margin relative to a decode's live bytes: workspace, fragmentation, and the bound of plans.",
        labels=["device", "family", "dtype", "strategy", "part", "host", "gpu"],
    )
    for card, report in {cards[worker.id]: worker.device for worker in alive}.items():
        for key, margin in (report.get("learned") or {}).get("margins", {}).items():
            if not margin["observations"] and margin["too_little_ratio"] is None:
                continue  # it rests on other strategies' measurements only
            for part in ("workspace", "fragmentation", "upper"):
                labels = [card.device, *key.split("/"), part, card.host, card.gpu]
                family.add_metric(labels, margin[f"{part}_ratio"])
    return family


def _disk_gauges(data_dir: Path) -> Iterator[Metric]:
    try:
        usage = shutil.disk_usage(data_dir)
    except OSError:
        return
    yield GaugeMetricFamily(
        "framefit_data_free_bytes", "Free bytes on the data folder's disk.", value=usage.free
    )
    yield GaugeMetricFamily("framefit_data_total_bytes", "Size of the data folder's disk.", value=usage.total)
