"""Objects that all routes share, built once in `create_app`: settings, store, admission, feed, metrics."""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from adaptive.device.nvml import Nvml
from app.api.background import Background, health
from app.api.fairness.shares import ClientShares
from app.api.feed import EventFeed
from app.api.views import job_view, ready_device_view
from app.config import Settings
from app.jobs import Job, JobStatus, Json, WorkerRow
from app.loops import LoopState
from app.media.images import ImageLimits
from app.media.spritesheet import SheetMaker
from app.models.checks.faults import ModelFaults
from app.models.downloads.access import AskHub, HubAccess
from app.models.entries import ModelEntry, load_models
from app.models.loras.folder import LoraFolder
from app.scheduling.admission import Admission, LoadRequirements
from app.scheduling.awaited_models import AwaitedModels
from app.scheduling.eta import RunTimes, WaitingTimes
from app.scheduling.eta_ranges import WaitingRanges
from app.scheduling.fits_here import ModelCards
from app.scheduling.unschedulable import UnschedulableJobs
from app.scheduling.usable_profile import LoadProfile
from app.service.disposal import Disposal
from app.service.exposition.exporter import Counting, Exporter
from app.service.exposition.hub_cache import HubCacheGauges, hub_cache
from app.service.exposition.key_gauges import KeysFileGauge
from app.service.exposition.live_gauges import LiveGauges
from app.service.exposition.loop_gauges import LoopGauges
from app.service.exposition.metrics import ServiceMetrics
from app.service.exposition.model_gauges import ModelGauges
from app.service.exposition.worker_ends import WorkerEnds
from app.service.failed_keys import FailedKeys
from app.service.gpus.memory_history import MemoryHistory
from app.service.keys import LiveKeys
from app.service.tracing.sender import Traces
from app.service.webhooks import SigningKeys, Webhooks
from app.store import JobDeleted, JobStore, NoSuchJob, StoreError, open_store

if TYPE_CHECKING:
    from app.service.tracing.otlp import RequestSpans


STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of the API process."""

    settings: Settings
    models: dict[str, ModelEntry]
    keys: LiveKeys
    store: JobStore
    admission: Admission
    faults: ModelFaults
    metrics: ServiceMetrics
    exporter: Exporter
    feed: EventFeed
    waiting_times: WaitingTimes
    cards: ModelCards
    hub: HubAccess
    waiting_ranges: WaitingRanges
    nvml: Nvml
    memory_history: MemoryHistory
    image_limits: ImageLimits
    shares: ClientShares
    background: Background
    webhooks: Webhooks | None
    traces: Traces | None
    request_spans: "RequestSpans | None"
    loras: LoraFolder
    sheets: SheetMaker = field(default_factory=SheetMaker)
    failed_keys: FailedKeys = field(default_factory=FailedKeys)

    @property
    def alive_seconds(self) -> float:
        """Time without a heartbeat after which a worker counts as lost."""
        return 3 * self.settings.heartbeat_seconds

    def alive_workers(self) -> list[WorkerRow]:
        """Return the workers with a recent heartbeat."""
        return self.store.workers(within_seconds=self.alive_seconds)

    def start(self) -> None:
        """Migrate the database and start the background threads."""
        self.store.migrate()
        self.keys.start()
        self.feed.start()
        if self.webhooks is not None:
            self.webhooks.start()
        if self.traces is not None:
            self.traces.loop.start()
        self.background.start()
        self.memory_history.loop.start()

    def stop(self) -> None:
        """Stop the threads; close the store and the driver."""
        self.memory_history.loop.stop()
        self.background.stop()
        self.memory_history.loop.join(STOP_SECONDS)
        self.keys.stop()
        self.feed.stop()
        if self.webhooks is not None:
            self.webhooks.stop()
        if self.traces is not None:
            self.traces.stop()
        if self.request_spans is not None:
            self.request_spans.close()
        self.shares.close()
        self.store.close()
        self.nvml.close()

    def loop_states(self) -> list[LoopState]:
        """Return the states of all loops of this process."""
        sent = () if self.webhooks is None else self.webhooks.loops
        traced = () if self.traces is None else (self.traces.loop,)
        own = (self.feed.loop, self.memory_history.loop, *self.background.loops, *self.keys.loops)
        loops = (*own, *sent, *traced, *self.store.loops)
        return [loop.state for loop in loops]

    def health(self) -> tuple[bool, Json]:
        """Return whether this process can do its work, and the JSON of /healthz. Waits for nothing."""
        return health(self.loop_states(), self.background.storage_fault)


def build_service(
    settings: Settings,
    load_profile: LoadProfile,
    load_requirements: LoadRequirements,
    ask_hub: AskHub | None = None,
) -> Service:
    """Build all parts without starting a thread."""
    models = load_models(settings)
    keys = LiveKeys(settings)
    store = open_store(settings)
    alive_seconds = 3 * settings.heartbeat_seconds
    alive_workers = partial(store.workers, within_seconds=alive_seconds)
    metrics = ServiceMetrics({name: entry.vae_class for name, entry in models.items()})
    nvml = Nvml()
    run_times = RunTimes()
    parts: dict[str, Counting] = {"metrics": metrics, "run_times": run_times}
    exporter = Exporter(store, parts, keep_seconds=settings.event_ttl_seconds)
    metrics.registry.register(
        LiveGauges(
            store,
            nvml.devices,
            alive_seconds=alive_seconds,
            data_dir=settings.data_dir,
            duties=exporter.duties,
        )
    )
    memory_history = MemoryHistory(alive_workers, nvml.devices, store.time, known=(StoreError,))
    traces, request_spans = _traces(settings, store, exporter)
    consumers = [
        metrics.apply,
        run_times.apply,
        memory_history.apply,
        *(() if traces is None else (traces.apply,)),
    ]
    metrics.registry.register(WorkerEnds(settings.data_dir))
    metrics.registry.register(HubCacheGauges(hub_cache()))
    faults = ModelFaults(settings, models)
    metrics.registry.register(ModelGauges(models, faults.permanent))
    if settings.keys_file is not None:
        metrics.registry.register(KeysFileGauge(keys))
    admission = Admission(
        models,
        load_profile,
        alive_workers,
        reserve_bytes=settings.reserve_bytes,
        load_requirements=load_requirements,
        find_fault=faults.of,
    )
    unschedulable = UnschedulableJobs(store, models, alive_workers, grace_seconds=settings.fit_grace_seconds)
    is_awaited = AwaitedModels(settings, models, alive_workers)
    service = Service(
        settings=settings,
        models=models,
        keys=keys,
        store=store,
        admission=admission,
        faults=faults,
        metrics=metrics,
        exporter=exporter,
        feed=EventFeed(store, consumers, exporter, poll_seconds=settings.poll_seconds),
        hub=HubAccess(settings, ask_hub),
        cards=ModelCards(settings, models, alive_workers, load_profile, load_requirements),
        waiting_times=WaitingTimes(run_times, store, alive_workers, is_awaited),
        waiting_ranges=WaitingRanges(run_times, store, alive_workers, is_awaited),
        nvml=nvml,
        memory_history=memory_history,
        image_limits=ImageLimits(settings.max_image_pixels, settings.max_image_side),
        shares=ClientShares(settings),
        background=Background(store, unschedulable, Disposal(settings, store), exporter),
        webhooks=_webhooks(settings, models, keys, store),
        traces=traces,
        request_spans=request_spans,
        loras=LoraFolder(settings.lora_folder),
    )
    metrics.registry.register(LoopGauges(service.loop_states, lambda: service.background.storage_fault))
    return service


def _webhooks(
    settings: Settings, models: dict[str, ModelEntry], keys: LiveKeys, store: JobStore
) -> Webhooks | None:
    if settings.webhook_secret is None:
        return None

    def view(job_id: str) -> Json:
        job = store.get(job_id)
        if job.delete_requested:  # after the delivery was taken
            raise NoSuchJob(job_id)
        return job_view(job, models.get(job.spec.model), prefix=settings.root_path)

    signing_keys = SigningKeys(settings.webhook_secret, keys)
    return Webhooks(store, signing_keys, view, allow_private=settings.webhook_allow_private)


def _traces(
    settings: Settings, store: JobStore, exporter: Exporter
) -> "tuple[Traces, RequestSpans] | tuple[None, None]":
    if settings.traces_endpoint is None:
        return None, None
    from app.service.tracing.otlp import Collector  # an extra

    collector = Collector(settings.traces_endpoint)
    return Traces(store, collector, exporter), collector.requests()


async def service_of(request: Request) -> Service:
    """Return the service of a request.

    This is a coroutine, as are the other dependencies: FastAPI would run a plain function in a thread.
    """
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(service_of)]


async def prefix_of(request: Request) -> str:
    """Return the path under which a proxy serves the service, "" without one; links begin with it."""
    prefix: str = request.scope.get("root_path", "")
    return prefix


Prefix = Annotated[str, Depends(prefix_of)]


def visible(service: Service, job_id: str, owner: str | None) -> Job:
    """Return the job. Raises `JobDeleted`, or `NoSuchJob`, also for a job of another API key, except to an
    admin key.
    """
    job = service.store.get(job_id)
    scope = service.keys.scope(owner)
    if scope is not None and job.owner != scope:
        raise NoSuchJob(job_id)
    if job.delete_requested:
        raise JobDeleted(job)
    return job


def readiness(service: Service) -> tuple[bool, Json]:
    """Return whether jobs can be stored and a live worker offers a model that can be used, and the JSON of
    /readyz."""
    workers = service.alive_workers()
    counts = service.store.counts()
    offered = {model for worker in workers for model in worker.device.get("models") or service.models}
    faults = service.faults.permanent()
    usable = {name: name in offered and name not in faults for name in service.models}
    healthy, state = service.health()
    ready = healthy and any(usable.values())
    report: Json = {
        "ready": ready,
        "workers": len(workers),
        "models": usable,
        "unavailable": faults,
        "devices": [ready_device_view(worker) for worker in workers],
        "queued": counts[JobStatus.QUEUED],
        "running": counts[JobStatus.RUNNING],
        "storage": state["storage"],
        "loops": state["loops"],
    }
    return ready, report
