"""The counters and histograms of the service. `live_gauges` and the files beside it have the gauges.

They are computed from the append-only events. A starting process goes on from the stored counters
(`exporter`), so the values do not depend on which process was killed when. What a job did on a device has the
labels `host`, `gpu` and `model`; the job's claim tells them. They are empty where no event does. No label
holds a job id: it is an exemplar. This file knows no HTTP. Longer than 300 lines, so that all counters and
histograms are in one file.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

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

from adaptive.device.spill import SpillSign
from adaptive.planning.weight_placement import PlacementKind
from adaptive.types import Strategy
from app.attempts import BLAME
from app.jobs import Event, JobStatus, Json, Stage
from app.service.exposition import metric_state

log = logging.getLogger(__name__)

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
MIB = 2**20
BYTES = tuple(float(MIB * 2**power) for power in range(4, 18))
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2, 3)
SEAMS = (-0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2, 0.5, 1, 2)
FRAMES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
OUTCOMES = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED)
STAGES = (
    *(Stage.DOWNLOADING, Stage.LOADING, Stage.DENOISING),
    *(Stage.WAITING_FOR_MEMORY, Stage.DECODING, Stage.ENCODING),
)
OOM_STAGES = (Stage.LOADING, Stage.DENOISING, Stage.DECODING)
NONFINITE_STAGES = ("denoising", "latents", "decoding", "sound")  # latents: those of a file
WEBHOOK_OUTCOMES = ("delivered", "failed", "given_up")
# A decode falls back from any of these to a later one.
RUNGS = (*(strategy.value for strategy in Strategy), "cpu")
PLACE = ("model", "host", "gpu")


class Place(NamedTuple):
    """Where a job runs; the values of the labels `PLACE`. `gpu` is the UUID, or "cpu"; "" is unknown."""

    model: str = ""
    host: str = ""
    gpu: str = ""


class ServiceMetrics:
    """Counters and histograms: `apply` counts events, `render` returns the text of a scrape."""

    def __init__(self, models: Mapping[str, str]) -> None:
        """`models` maps each model's name to its VAE class."""
        # The created metrics would give this process's start time, not that of the counters.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._vae_of_model = dict(models)
        self._model_of_job: dict[str, str] = {}  # of jobs that have not ended
        self._claimed: dict[str, Place] = {}  # of these, the claimed ones; for others, the claim tells it
        self._lock = threading.Lock()
        self._counted: dict[str, Counter | Histogram] = {}
        self._define_job_metrics()
        self._define_decode_metrics()
        self._begin_at_zero()
        ProcessCollector(registry=self.registry)

    def _define_job_metrics(self) -> None:
        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return self._histogram(name, text, SECONDS, *labels)

        self.jobs = self._counter("jobs", "Jobs that ended, by model and outcome.", "outcome", *PLACE)
        self.failures = self._counter("jobs_failed", "Jobs that failed, by error code.", "code", *PLACE)
        self.queue_seconds = histogram(
            "job_queue_seconds", "Time from being queued to being claimed.", "model"
        )
        self.job_seconds = histogram(
            "job_duration_seconds", "Time from acceptance to the end of a job.", *PLACE
        )
        self.stage_seconds = histogram(
            "stage_duration_seconds", "Time a job spent in a stage.", "stage", *PLACE
        )
        self.frames = self._counter("video_frames", "Frames of finished videos.", *PLACE)
        self.pixels = self._counter("video_pixels", "Pixels of all frames of finished videos.", *PLACE)
        self.denoised = self._counter(
            "jobs_denoised",
            "Denoising runs by model, and whether int8 weights made the pixels approximate.",
            "pixels",
            *PLACE,
        )
        self.requeued = self._counter(
            "jobs_requeued", "Running jobs that went back to the queue, by reason.", "reason", *PLACE
        )
        self.preemptions = self._counter(
            "preemptions", "Running jobs that gave way to a job of higher priority.", *PLACE
        )
        self.downloaded = self._counter(
            "download_bytes", "Bytes of models received from the hub by workers.", *PLACE
        )
        self.denoise_steps = self._counter(
            "denoise_steps",
            "Denoising steps: computed, and taken from the checkpoint of an earlier attempt.",
            "how",
            *PLACE,
        )
        self.denoise_fallback = self._counter(
            "denoise_fallback", "Steps down of denoises that ran out of memory.", "from", "to", *PLACE
        )
        self.handovers = self._counter(
            "decode_handovers",
            "Denoised jobs that other workers could decode: handed_over to one, kept, or given_back by one.",
            "outcome",
            *PLACE,
        )
        self.held = self._counter(
            "jobs_held", "Jobs put behind all others because they ended their workers too often."
        )
        self.oom = self._counter("oom", "Out-of-memory errors by stage.", "stage", *PLACE)
        self.webhooks = self._counter(
            "webhook_deliveries",
            "Attempts to deliver a webhook; given_up: the last one failed, too.",
            "outcome",
        )
        self.nonfinite = self._counter(
            "nonfinite", "Findings of NaN or infinite values by stage.", "stage", *PLACE
        )

    def _define_decode_metrics(self) -> None:
        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return self._histogram(f"decode_{name}", text, buckets, *labels, *PLACE)

        self.strategy = self._counter(
            "decode_strategy",
            "Decode plans made, by VAE, strategy and reason.",
            "vae",
            "strategy",
            "reason",
            *PLACE,
        )
        self.fallback = self._counter(
            "decode_fallback", "Changes of strategy inside a decode.", "from", "to", *PLACE
        )
        self.spill = self._counter(
            "decode_spill",
            "Chunks that spilled into host memory, by the sign that showed it.",
            "sign",
            *PLACE,
        )
        self.regret = self._counter(
            "decode_regret_seconds",
            "Time that a faster plan would have saved, computed after each decode.",
            *PLACE,
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
        """Create the series whose labels are known before the first job: a rate misses a series' first value.

        What a device does is counted for no device yet; `_begin_at_place` follows when a job is claimed.
        """
        for model in self._vae_of_model:
            self.queue_seconds.labels(model)
            for outcome in OUTCOMES:
                self.jobs.labels(outcome, model, "", "")
        for state in WEBHOOK_OUTCOMES:
            self.webhooks.labels(state)
        for stage in OOM_STAGES:
            self.oom.labels(stage, *Place())
        for name in NONFINITE_STAGES:
            self.nonfinite.labels(name, *Place())
        for sign in SpillSign:
            self.spill.labels(sign, *Place())
        for before, after in combinations(RUNGS, 2):
            self.fallback.labels(before, after, *Place())

    def _begin_at_place(self, at: Place) -> None:
        """Create the series of jobs of that model on that device, at zero, before they count."""
        for outcome in OUTCOMES:
            self.jobs.labels(outcome, *at)
        for stage in STAGES:
            self.stage_seconds.labels(stage, *at)
        for stage in OOM_STAGES:
            self.oom.labels(stage, *at)
        for name in NONFINITE_STAGES:
            self.nonfinite.labels(name, *at)
        for sign in SpillSign:
            self.spill.labels(sign, *at)
        for before, after in combinations(RUNGS, 2):
            self.fallback.labels(before, after, *at)
        for pixels in ("exact", "approximate"):
            self.denoised.labels(pixels, *at)
        for end in ("handed_over", "kept", "given_back"):
            self.handovers.labels(end, *at)
        for how in ("computed", "resumed"):
            self.denoise_steps.labels(how, *at)
        histograms = (self.job_seconds, self.chunk_frames, self.predicted, self.measured, self.ratio)
        plain = (self.frames, self.pixels, self.regret, self.preemptions, self.downloaded)
        for metric in (*plain, *histograms):
            metric.labels(*at)
        for before, after in combinations(PlacementKind, 2):
            self.denoise_fallback.labels(before, after, *at)
        for placement in PlacementKind:
            for after in ("released_caches", "guidance_in_two_passes", "slices", "waited_for_memory"):
                self.denoise_fallback.labels(placement, after, *at)

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
                "place_of_job": {one: [at.host, at.gpu] for one, at in self._claimed.items()},
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
                places = state.get("place_of_job", {})  # earlier versions stored none
                self._claimed = {
                    job_id: Place(model, *places.get(job_id, ("", "")))
                    for job_id, model in self._model_of_job.items()
                }
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                self._to_zero()
                raise ValueError(f"no state of metrics: {error!r}") from error

    def _to_zero(self) -> None:
        metric_state.reset(self._counted)
        self._model_of_job = {}
        self._claimed = {}
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
        at = self._claimed.get(event.job_id) or Place(self._model_of_job.get(event.job_id, ""))
        job = {"job_id": event.job_id}
        match event.kind:
            case "accepted" | "queued_again":
                self._model_of_job[event.job_id] = data["model"]
            case "claimed":
                self._apply_claimed(event)
            case "requeued":
                self._claimed.pop(event.job_id, None)
                reason = data["reason"] if data["reason"] in BLAME else "other"
                self.requeued.labels(reason, *at).inc(exemplar=job)
            case "preempted":
                self.preemptions.labels(*at).inc(exemplar=job)
            case "handed_over" | "decode_kept" | "decode_given_back":  # framefit_decode_handovers_total
                self.handovers.labels(event.kind.removeprefix("decode_"), *at).inc(exemplar=job)
                for stage, seconds in data.get("durations", {}).items():  # those of the attempt until then
                    self.stage_seconds.labels(stage, *at).observe(seconds, job)
            case "plan":
                vae = data.get("vae") or self._vae_of_model.get(at.model, "unknown")
                self.strategy.labels(vae, data["strategy"], data["reason"], *at).inc(exemplar=job)
                self.decode_seconds.labels(data["strategy"], *at)
            case "downloaded":  # framefit_download_bytes_total
                self.downloaded.labels(*at).inc(data["received_bytes"], exemplar=job)
            case "resumed":  # framefit_denoise_steps_total
                self.denoise_steps.labels("resumed", *at).inc(data["step"], exemplar=job)
            case "checkpoint":
                self.denoise_steps.labels("computed", *at).inc(data["steps_since_checkpoint"], exemplar=job)
            case "denoised":
                computed = data.get("steps_since_checkpoint", 0)
                self.denoise_steps.labels("computed", *at).inc(computed, exemplar=job)
                pixels = "approximate" if data.get("exact") is False else "exact"
                self.denoised.labels(pixels, *at._replace(model=at.model or "unknown")).inc()
            case "fallback":
                self.fallback.labels(data["from"], data["to"], *at).inc(exemplar=job)
                self.decode_seconds.labels(data["to"], *at)
            case "denoise_fallback":
                self.denoise_fallback.labels(data["from"], data["to"], *at).inc(exemplar=job)
            case "held":  # framefit_jobs_held_total
                self.held.inc(exemplar=job)
            case "oom":
                self.oom.labels(data["stage"], *at).inc(exemplar=job)
            case "nonfinite":
                self.nonfinite.labels(data["stage"], *at).inc(exemplar=job)
            case "spill":
                self.spill.labels(data["sign"], *at).inc(exemplar=job)
            case "webhook":
                self.webhooks.labels(data["state"]).inc(exemplar=job)
            case "finished":
                self._model_of_job.pop(event.job_id, None)
                self._claimed.pop(event.job_id, None)
                self._apply_finished(data, at._replace(model=data["model"]), job)

    def _apply_claimed(self, event: Event) -> None:
        data = event.data
        model = data.get("model") or self._model_of_job.get(event.job_id, "")
        self._model_of_job[event.job_id] = model
        # A worker's id is host/device/instance, where the device is its UUID if it has one.
        host, _, rest = str(data.get("worker_id", "")).partition("/")
        at = Place(model, host, rest.partition("/")[0])
        self._claimed[event.job_id] = at
        self._begin_at_place(at)
        self.queue_seconds.labels(model).observe(data["queued_seconds"], {"job_id": event.job_id})

    def _apply_finished(self, data: Mapping[str, Any], at: Place, job: dict[str, str]) -> None:
        self.jobs.labels(data["outcome"], *at).inc(exemplar=job)
        if data["outcome"] == JobStatus.FAILED:
            code = (data.get("error") or {}).get("code", "unknown")
            self.failures.labels(code, *at).inc(exemplar=job)
        if "duration_seconds" in data:
            self.job_seconds.labels(*at).observe(data["duration_seconds"], job)
        for stage, seconds in (data.get("durations") or {}).items():
            self.stage_seconds.labels(stage, *at).observe(seconds, job)
        video = data.get("video")
        if video and all(video.values()):
            self.frames.labels(*at).inc(video["frames"])
            self.pixels.labels(*at).inc(video["frames"] * video["width"] * video["height"])
        decode = data.get("decode")
        if decode and "seconds" in decode:
            # A card's job may be decoded on the CPU, whose memory is not the card's.
            self._apply_decode(decode, at._replace(gpu="cpu") if decode.get("device") == "cpu" else at, job)

    def _apply_decode(self, decode: Mapping[str, Any], at: Place, job: dict[str, str]) -> None:
        self.chunk_frames.labels(*at).observe(decode["frames_per_chunk"], job)
        self.decode_seconds.labels(decode["strategy"], *at).observe(decode["seconds"], job)
        self.regret.labels(*at).inc(decode.get("regret_seconds") or 0.0)
        predicted, measured = decode.get("predicted_peak_bytes"), decode.get("measured_peak_bytes")
        if predicted:
            self.predicted.labels(*at).observe(predicted, job)
        if measured is not None:
            self.measured.labels(*at).observe(measured, job)
        if decode.get("seam_score") is not None:
            self.seam.labels(*at).observe(decode["seam_score"], job)
        if predicted and measured is not None:
            self.ratio.labels(*at).observe(measured / predicted, job)

    def render(
        self,
        *,
        counters: bool = True,
        starting: bool = False,
        encode: Callable[[Collector], bytes] = generate_latest,
    ) -> bytes:
        """Return the metrics in Prometheus's text format, or as `encode` writes them.

        Without `counters`, those of this process only. `starting` says that it still counts past events.
        """
        return encode(self.scrape(counters=counters, starting=starting))

    def scrape(self, *, counters: bool = True, starting: bool = False) -> Collector:
        """Return what `render` writes."""
        return _Scrape(self.registry, () if counters else self._counted, starting)


class _Scrape(Collector):
    """The metrics of a registry without those that are named, and whether the process is starting."""

    def __init__(self, registry: CollectorRegistry, names: Iterable[str], starting: bool) -> None:
        self._registry = registry
        self._names = frozenset(names)
        self._starting = starting

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "framefit_starting",
            "Whether this process still counts past events, and shows no counters until it has.",
            value=int(self._starting),
        )
        yield from (family for family in self._registry.collect() if family.name not in self._names)
