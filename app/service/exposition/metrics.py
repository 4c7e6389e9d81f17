"""The Prometheus metrics of the service. `gpus.gauges` and `model_gauges` have those of GPUs and of models.

Counters and histograms are computed from the append-only events. A starting process goes on from the stored
counters (`exporter`), so the values do not depend on which process was killed when. Gauges are read at each
scrape from the job table, the workers' last heartbeats and the driver, so none can be stale. No label holds a
job id. This file knows no HTTP. Longer than 300 lines, so that all counters and histograms are in one file.
"""

import logging
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from adaptive.device.nvml import GpuInfo
from adaptive.device.spill import SpillSign
from adaptive.types import Strategy
from app.jobs import Event, JobStatus, Json, Stage, WorkerRow
from app.service.exposition import metric_state
from app.service.gpus.gauges import device_labels, memory_gauges, unused_gpus

log = logging.getLogger(__name__)

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
MIB = 2**20
BYTES = tuple(float(MIB * 2**power) for power in range(4, 18))
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2, 3)
SEAMS = (-0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2)
FRAMES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
OUTCOMES = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED)
STAGES = (Stage.LOADING, Stage.DENOISING, Stage.WAITING_FOR_MEMORY, Stage.DECODING, Stage.ENCODING)
OOM_STAGES = (Stage.LOADING, Stage.DENOISING, Stage.DECODING)
NONFINITE_STAGES = ("denoising", "latents", "decoding", "sound")  # latents: those of a file
WEBHOOK_OUTCOMES = ("delivered", "failed", "given_up")
# A decode falls back from any of these to a later one.
RUNGS = (*(strategy.value for strategy in Strategy), "cpu")

ReadGpus = Callable[[], Sequence[GpuInfo]]


class Source(Protocol):
    """The part of the job store that the gauges read."""

    def counts(self) -> Mapping[JobStatus, int]:
        """Return the number of jobs by status."""
        ...

    def workers(self, *, within_seconds: float) -> list[WorkerRow]:
        """Return workers whose last heartbeat is at most `within_seconds` old."""
        ...


class ServiceMetrics:
    """Counters and histograms: `apply` counts events, `render` returns the text of a scrape."""

    def __init__(self, models: Mapping[str, str]) -> None:
        """`models` maps each model's name to its VAE class."""
        # The created metrics would give this process's start time, not that of the counters.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._vae_of_model = dict(models)
        self._model_of_job: dict[str, str] = {}  # of jobs that have not ended
        self._claimed: set[str] = set()  # of these, the claimed ones; for others, the claim names the model
        self._lock = threading.Lock()
        self._counted: dict[str, Counter | Histogram] = {}
        self._define_job_metrics()
        self._define_decode_metrics()
        self._begin_at_zero()
        ProcessCollector(registry=self.registry)

    def _define_job_metrics(self) -> None:
        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return self._histogram(name, text, SECONDS, *labels)

        self.jobs = self._counter("jobs", "Jobs that ended, by model and outcome.", "model", "outcome")
        self.queue_seconds = histogram("job_queue_seconds", "Time from being queued to being claimed.")
        self.job_seconds = histogram("job_duration_seconds", "Time from acceptance to the end of a job.")
        self.stage_seconds = histogram("stage_duration_seconds", "Time a job spent in a stage.", "stage")
        self.denoised = self._counter(
            "jobs_denoised",
            "Denoising runs by model, and whether int8 weights made the pixels approximate.",
            "model",
            "pixels",
        )
        self.held = self._counter(
            "jobs_held", "Jobs put behind all others because they ended their workers too often."
        )
        self.oom = self._counter("oom", "Out-of-memory errors by stage.", "stage")
        self.webhooks = self._counter(
            "webhook_deliveries",
            "Attempts to deliver a webhook; given_up: the last one failed, too.",
            "outcome",
        )
        self.nonfinite = self._counter("nonfinite", "Findings of NaN or infinite values by stage.", "stage")

    def _define_decode_metrics(self) -> None:
        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return self._histogram(f"decode_{name}", text, buckets, *labels)

        self.strategy = self._counter(
            "decode_strategy", "Decode plans made, by VAE, strategy and reason.", "vae", "strategy", "reason"
        )
        self.fallback = self._counter("decode_fallback", "Changes of strategy inside a decode.", "from", "to")
        self.spill = self._counter(
            "decode_spill", "Chunks that spilled into host memory, by the sign that showed it.", "sign"
        )
        self.regret = self._counter(
            "decode_regret_seconds", "Time that a faster plan would have saved, computed after each decode."
        )
        self.chunk_frames = histogram(
            "chunk_frames", "Latent frames per chunk at the end of a decode.", FRAMES
        )
        self.decode_seconds = histogram("duration_seconds", "Time in the VAE's decoder.", SECONDS, "strategy")
        self.predicted = histogram("predicted_peak_bytes", "Predicted peak memory of a decode.", BYTES)
        self.measured = histogram("measured_peak_bytes", "Measured peak memory of a decode.", BYTES)
        self.seam = histogram("seam_score", "Visibility of seams in approximate decodes; 0: none.", SEAMS)
        self.ratio = histogram("prediction_ratio", "Measured peak divided by the predicted peak.", RATIOS)

    def _begin_at_zero(self) -> None:
        """Create every series with known labels: a rate misses the first event of a new series."""
        for model in self._vae_of_model:
            for outcome in OUTCOMES:
                self.jobs.labels(model, outcome)
            for pixels in ("exact", "approximate"):
                self.denoised.labels(model, pixels)
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for stage in OOM_STAGES:
            self.oom.labels(stage)
        for name in NONFINITE_STAGES:
            self.nonfinite.labels(name)
        for state in WEBHOOK_OUTCOMES:
            self.webhooks.labels(state)
        for sign in SpillSign:
            self.spill.labels(sign)
        for strategy in Strategy:
            self.decode_seconds.labels(strategy)
        for before, after in combinations(RUNGS, 2):
            self.fallback.labels(before, after)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(f"framefit_{name}", text, labels, registry=self.registry)
        self._counted[f"framefit_{name}"] = counter
        return counter

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        name = f"framefit_{name}"
        histogram = Histogram(name, text, labels, buckets=tuple(buckets), registry=self.registry)
        self._counted[name] = histogram
        return histogram

    def state(self) -> Json:
        """Return everything that was counted, as JSON."""
        with self._lock:
            return {
                "metrics": metric_state.state_of(self._counted),
                "model_of_job": {one: self._model_of_job.get(one, "unknown") for one in self._claimed},
            }

    def restore(self, state: Json | None) -> None:
        """Count on from a state; None: from zero. Raises `ValueError`, and is at zero, if it is no state."""
        with self._lock:
            self._to_zero()
            if state is None:
                return
            try:
                metric_state.restore(self._counted, state["metrics"])
                self._model_of_job = dict(state["model_of_job"])
                self._claimed = set(self._model_of_job)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                self._to_zero()
                raise ValueError(f"no state of metrics: {error!r}") from error

    def _to_zero(self) -> None:
        metric_state.reset(self._counted)
        self._model_of_job = {}
        self._claimed = set()
        self._begin_at_zero()

    def apply(self, events: Iterable[Event]) -> None:
        """Count events; call once for each, in order. An event that cannot be read is logged and skipped."""
        with self._lock:
            for event in events:
                try:
                    self._apply(event)
                except (KeyError, TypeError, ValueError):
                    log.exception("event_not_counted job_id=%s kind=%s", event.job_id, event.kind)

    def _apply(self, event: Event) -> None:
        data = event.data
        match event.kind:
            case "accepted" | "queued_again":
                self._model_of_job[event.job_id] = data["model"]
            case "claimed":
                self._claimed.add(event.job_id)
                if "model" in data:
                    self._model_of_job[event.job_id] = data["model"]
                self.queue_seconds.observe(data["queued_seconds"])
            case "plan":
                vae = data.get("vae") or self._vae_of(event.job_id)
                self.strategy.labels(vae, data["strategy"], data["reason"]).inc()
            case "denoised":
                pixels = "approximate" if data.get("exact") is False else "exact"
                self.denoised.labels(self._model_of_job.get(event.job_id, "unknown"), pixels).inc()
            case "fallback":
                self.fallback.labels(data["from"], data["to"]).inc()
            case "held":  # framefit_jobs_held_total
                self.held.inc()
            case "oom":
                self.oom.labels(data["stage"]).inc()
            case "nonfinite":
                self.nonfinite.labels(data["stage"]).inc()
            case "spill":
                self.spill.labels(data["sign"]).inc()
            case "webhook":
                self.webhooks.labels(data["state"]).inc()
            case "finished":
                self._model_of_job.pop(event.job_id, None)
                self._claimed.discard(event.job_id)
                self._apply_finished(data)

    def _vae_of(self, job_id: str) -> str:
        return self._vae_of_model.get(self._model_of_job.get(job_id, ""), "unknown")

    def _apply_finished(self, data: Mapping[str, Any]) -> None:
        self.jobs.labels(data["model"], data["outcome"]).inc()
        if "duration_seconds" in data:
            self.job_seconds.observe(data["duration_seconds"])
        for stage, seconds in (data.get("durations") or {}).items():
            self.stage_seconds.labels(stage).observe(seconds)
        decode = data.get("decode")
        if not decode or "seconds" not in decode:
            return
        self.chunk_frames.observe(decode["frames_per_chunk"])
        self.decode_seconds.labels(decode["strategy"]).observe(decode["seconds"])
        self.regret.inc(decode.get("regret_seconds") or 0.0)
        predicted, measured = decode.get("predicted_peak_bytes"), decode.get("measured_peak_bytes")
        if predicted:
            self.predicted.observe(predicted)
        if measured is not None:
            self.measured.observe(measured)
        if decode.get("seam_score") is not None:
            self.seam.observe(decode["seam_score"])
        if predicted and measured is not None:
            self.ratio.observe(measured / predicted)

    def render(self, *, counters: bool = True) -> bytes:
        """Return the metrics in Prometheus's text format; without `counters`, those of this process only."""
        return generate_latest(self.registry if counters else _Without(self.registry, self._counted))


class _Without(Collector):
    """The metrics of a registry without those that are named."""

    def __init__(self, registry: CollectorRegistry, names: Iterable[str]) -> None:
        self._registry = registry
        self._names = frozenset(names)

    def collect(self) -> Iterator[Metric]:
        return (family for family in self._registry.collect() if family.name not in self._names)


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
    ) -> None:
        """`duties` says which gauges this process exports of those that others could, too."""
        self._source = source
        self._gpus = gpus
        self._alive_seconds = alive_seconds
        self._data_dir = data_dir
        self._duties = duties

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not read the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the job table, the workers and the driver."""
        duties = self._duties()
        workers = self._source.workers(within_seconds=24 * 3600)
        alive = self._source.workers(within_seconds=self._alive_seconds)
        labels = device_labels([*workers, *alive])
        yield GaugeMetricFamily(
            "framefit_exporter",
            "Whether this process exports the job table's metrics: 1 for one API process of a database.",
            value=int(duties.store),
        )
        if duties.store:
            yield from self._of_store(workers, alive, labels)
        own = duties.of_workers(alive, socket.gethostname())
        yield from memory_gauges(self._gpus() if duties.gpus else (), own, labels)
        yield unused_gpus(self._data_dir)
        yield from _disk_gauges(self._data_dir)

    def _of_store(
        self, workers: list[WorkerRow], alive: list[WorkerRow], labels: Mapping[str, str]
    ) -> Iterator[Metric]:
        counts = self._source.counts()
        for name, status in (("queued", JobStatus.QUEUED), ("running", JobStatus.RUNNING)):
            yield GaugeMetricFamily(f"framefit_jobs_{name}", f"Jobs {name} now.", value=counts[status])
        yield _worker_up(workers, alive, labels)
        yield _margin_gauge(alive, labels)


def _worker_up(workers: list[WorkerRow], alive: list[WorkerRow], labels: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(
        "framefit_worker_up", "Whether a device's worker has a recent heartbeat.", labels=["device"]
    )
    names = {labels[worker.id]: 0 for worker in workers}
    names.update({labels[worker.id]: 1 for worker in alive})
    for name, up in sorted(names.items()):
        family.add_metric([name], up)
    return family


def _margin_gauge(alive: list[WorkerRow], labels: Mapping[str, str]) -> Metric:
    """The learned margins of decodes above their live bytes, as each device's worker last reported them."""
    family = GaugeMetricFamily(
        "framefit_decode_margin_ratio",
        "Learned margin relative to a decode's live bytes: workspace, fragmentation, and the bound of plans.",
        labels=["device", "family", "dtype", "strategy", "part"],
    )
    # One a device: two services of one host may use the same.
    for name, report in {labels[worker.id]: worker.device for worker in alive}.items():
        for key, margin in (report.get("learned") or {}).get("margins", {}).items():
            if not margin["observations"] and margin["too_little_ratio"] is None:
                continue  # it rests on other strategies' measurements only
            of = [name, *key.split("/")]
            family.add_metric([*of, "workspace"], margin["workspace_ratio"])
            family.add_metric([*of, "fragmentation"], margin["fragmentation_ratio"])
            family.add_metric([*of, "upper"], margin["upper_ratio"])
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
