"""A fleet of three hosts with eight cards each, made of the service's own metric classes, and its numbers.

The first host is served by two API processes that share a database; the duty of exporting passes from one to
the other in the middle. The other hosts are services of their own. Jobs are claimed and finished in phases,
so that a scrape sees each step.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import Gauge

from adaptive.device.nvml import GpuInfo, NvmlState
from app.api.middleware.http_metrics import HttpMetrics
from app.jobs import Event, JobStatus, WorkerRow
from app.service.exposition.live_gauges import Duties, LiveGauges
from app.service.exposition.metrics import ServiceMetrics
from app.service.exposition.model_gauges import ModelGauges
from app.service.gpus.unused import UnusedGpu, UnusedReason, publish

HOSTS = ("alpha", "beta", "gamma")
CARDS_A_HOST = 8
MODELS = {"ltx": "AutoencoderKLLTXVideo", "wan": "AutoencoderKLWan"}
GIB = 2**30
STRATEGIES = ("batched", "chunked", "per_frame")
STARTED_AT = 1_700_000_000.0
PHASES = ("idle", "first claims", "first ends", "second claims", "second ends")
HANDOVER = PHASES.index("second claims")  # from then on, the second process of the first host exports


@dataclass(frozen=True)
class FakeCard:
    """A card and what is true of it at the end."""

    host: str
    index: int
    total_bytes: int
    own_bytes: int
    other_bytes: int
    utilization: float

    @property
    def uuid(self) -> str:
        return f"GPU-{self.host}-{self.index}"

    @property
    def device(self) -> str:
        return f"cuda:{self.index}"

    @property
    def name(self) -> str:
        """As boards show it."""
        return f"{self.host} {self.device}"

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.own_bytes - self.other_bytes

    @property
    def is_up(self) -> bool:
        return self.index != 5

    @property
    def restarts(self) -> int:
        return int(self.index % 3 == 0)


@dataclass(frozen=True)
class FakeJob:
    """A job and what its events tell; `round` is 0 or 1."""

    id: str
    card: FakeCard
    round: int
    model: str
    outcome: str
    strategy: str
    queued_seconds: float
    stages: Mapping[str, float]
    predicted_bytes: int
    ratio: float
    frames_per_chunk: int
    frames: int = 25
    width: int = 512
    height: int = 256
    regret_seconds: float = 2.5

    @property
    def succeeded(self) -> bool:
        return self.outcome == JobStatus.SUCCEEDED

    @property
    def seconds(self) -> float:
        return self.queued_seconds + sum(self.stages.values())

    @property
    def measured_bytes(self) -> int:
        return round(self.predicted_bytes * self.ratio)

    def claim(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events until the decode is planned and fell back."""
        worker = {"worker_id": f"{self.card.host}/{self.card.uuid}/1", "host": self.card.host}
        yield "accepted", {"model": self.model}
        yield "claimed", {**worker, "queued_seconds": self.queued_seconds, "model": self.model}
        yield "requeued", {"reason": "worker_lost", "attempt": 1}
        yield "claimed", {**worker, "queued_seconds": self.queued_seconds, "model": self.model}

    def end(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rest of its events."""
        yield "plan", {"strategy": self.strategy, "reason": "fastest_that_fits"}
        yield "oom", {"stage": "decoding"}
        yield "fallback", {"from": self.strategy, "to": "tiled"}
        yield "nonfinite", {"stage": "latents"}
        yield "decode_kept", {"reason": "ends_earlier_here"}
        yield "spill", {"sign": "slow_chunk"}
        decode = {
            "strategy": self.strategy,
            "frames_per_chunk": self.frames_per_chunk,
            "seconds": self.stages["decoding"],
            "predicted_peak_bytes": self.predicted_bytes,
            "measured_peak_bytes": self.measured_bytes,
            "regret_seconds": self.regret_seconds,
            "device": self.card.device,
        }
        size = {"frames": self.frames, "width": self.width, "height": self.height}
        yield (
            "finished",
            {
                "model": self.model,
                "outcome": self.outcome,
                "duration_seconds": self.seconds,
                "durations": dict(self.stages),
                "decode": decode,
                "error": None if self.succeeded else {"code": "out_of_memory"},
                "video": size if self.succeeded else None,
            },
        )
        yield "webhook", {"state": "delivered"}


@dataclass
class FakeApi:
    """One API process: the page of metrics that it shows."""

    name: str
    host: str
    jobs: Sequence[FakeJob]
    cards: Sequence[FakeCard]
    folder: Path
    queued: int = 3
    running: int = 2
    exports: bool = True
    phase: int = 0
    applied: int = 0
    busy: frozenset[str] | None = (
        None  # UUIDs of the cards that run a job; None: all, from the first claims on
    )
    metrics: ServiceMetrics = field(default_factory=lambda: ServiceMetrics(MODELS))

    def __post_init__(self) -> None:
        registry = self.metrics.registry
        live = LiveGauges(
            self, self.gpus, alive_seconds=15, data_dir=self.folder, duties=self.duties, host=self.host
        )
        registry.register(live)
        registry.register(ModelGauges(MODELS, lambda: {"wan": "damaged"}))
        self.http = HttpMetrics(registry)
        self.marker = Gauge("fake_phase", "The phase that the page shows.", registry=registry)

    def duties(self) -> Duties:
        return Duties(self.exports, self.exports, frozenset())

    def counts(self) -> dict[JobStatus, int]:
        return {**dict.fromkeys(JobStatus, 0), JobStatus.QUEUED: self.queued, JobStatus.RUNNING: self.running}

    def oldest_queued_seconds(self) -> float:
        return 100.0 + HOSTS.index(self.host)

    def workers(self, *, within_seconds: float) -> list[WorkerRow]:
        return [
            WorkerRow(
                f"{card.host}/{card.uuid}/1",
                {
                    "name": card.device,
                    "uuid": card.uuid,
                    "kind": "cuda",
                    "product": "Fake 9000",
                    "own_bytes": card.own_bytes,
                },
                "job" if (self.phase > 0 if self.busy is None else card.uuid in self.busy) else None,
                "active",
                STARTED_AT + card.restarts * (self.phase >= HANDOVER),
                0.0,
            )
            for card in self.cards
            if card.is_up or within_seconds > 60
        ]

    def gpus(self) -> list[GpuInfo]:
        return [
            GpuInfo(
                card.uuid,
                card.index,
                "Fake 9000",
                card.total_bytes,
                card.free_bytes,
                card.total_bytes - card.free_bytes,
                card.utilization,
                (),
                NvmlState.OK,
            )
            for card in self.cards
        ]

    def page(self, phase: int) -> bytes:
        """The page in a phase; call it with each in turn."""
        self.phase = phase
        self.marker.set(phase)
        events: list[tuple[str, str, dict[str, Any]]] = []
        for job in self.jobs:
            if (phase, job.round) in ((1, 0), (3, 1)):
                events += [(job.id, *one) for one in job.claim()]
            elif (phase, job.round) in ((2, 0), (4, 1)):
                events += [(job.id, *one) for one in job.end()]
        if phase in (0, 2, 4):
            for status in (200, 503):
                self.http.count("/generate", "POST", status, 0.02)
        self.apply(events)
        return self.metrics.render(counters=self.exports)

    def apply(self, events: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
        """Count events: job, kind, data."""
        self.metrics.apply(
            Event(self.applied + number, job_id, kind, 0.0, data)
            for number, (job_id, kind, data) in enumerate(events, 1)
        )
        self.applied += len(events)


class FakeFleet:
    """All cards and jobs, and the pages of the four processes in each phase."""

    def __init__(self, folder: Path, seed: int) -> None:
        chance = random.Random(seed)
        self.cards = [_card(host, index, chance) for host in HOSTS for index in range(CARDS_A_HOST)]
        self.jobs = [
            _job(card, turn, number, chance) for card in self.cards for turn in (0, 1) for number in range(3)
        ]
        publish(folder, [UnusedGpu("GPU-x", "Fake 9000", UnusedReason.CANNOT_OPEN)])
        self.apis = [
            FakeApi("alpha-1", "alpha", self.of_host("alpha"), self.cards_of("alpha"), folder),
            FakeApi("alpha-2", "alpha", self.of_host("alpha"), self.cards_of("alpha"), folder, exports=False),
            FakeApi("beta-1", "beta", self.of_host("beta"), self.cards_of("beta"), folder),
            FakeApi("gamma-1", "gamma", self.of_host("gamma"), self.cards_of("gamma"), folder),
        ]

    def of_host(self, host: str) -> list[FakeJob]:
        return [job for job in self.jobs if job.card.host == host]

    def cards_of(self, host: str) -> list[FakeCard]:
        return [card for card in self.cards if card.host == host]

    def pages(self, phase: int) -> dict[str, bytes]:
        """The page of each process; call it with each phase in turn."""
        if phase == HANDOVER:
            self.apis[0].exports, self.apis[1].exports = False, True
        return {api.name: api.page(phase) for api in self.apis}


def _card(host: str, index: int, chance: random.Random) -> FakeCard:
    total = (2, 8, 12, 16, 24, 32, 48, 80)[index] * GIB
    own, other = (round(total * chance.uniform(0.1, 0.4)) for _ in range(2))
    return FakeCard(host, index, total, own, other, round(chance.uniform(0.1, 1), 3))


def _job(card: FakeCard, turn: int, number: int, chance: random.Random) -> FakeJob:
    scale = 1 + card.index + 8 * HOSTS.index(card.host)
    stages = {
        name: round(scale * chance.uniform(0.5, 1.0), 3)
        for name in ("loading", "denoising", "waiting_for_memory", "decoding", "encoding")
    }
    return FakeJob(
        id=f"{card.uuid}-{turn}-{number}",
        card=card,
        round=turn,
        model=list(MODELS)[number % 2],
        outcome=("succeeded", "succeeded", "failed")[number],
        strategy=STRATEGIES[number],
        queued_seconds=round(scale * chance.uniform(2, 4), 3),
        stages=stages,
        predicted_bytes=round(card.total_bytes * chance.uniform(0.2, 0.5)),
        ratio=round(chance.uniform(0.7, 1.2), 3),
        frames_per_chunk=1 + card.index,
    )
