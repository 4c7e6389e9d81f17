"""The whole service on pretended cards, beside a neighbour that takes and gives memory at random:

    python tests/bench/service_on_cards.py --jobs 200 --seed 1

Cards are scaled from 8, 12, 16 and 24 GB. Jobs of LTX, Wan, SVD, HunyuanVideo and DynamiCrafter, all tiny
(see `card_models.py`), pass through `framefit serve`: placement, denoise, previews, decode and video. Every
job must succeed and its video decode to its last frame, every strategy and placement must be taken, and the
queries of the board *memory* must answer for each card. Equal jobs on each card, at the start, in the
middle and at the end, must find the same memory in use. Writes results/service_on_cards.{json,md}; see
tests/accelerator for the cards.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
sys.path[:0] = [str(ROOT), *(str(TESTS / name) for name in ("", "accelerator", "acceptance", "integration"))]

import nvml_stub  # noqa: E402
from grafana_boards import Prometheus, Span, answers, boards, panels  # noqa: E402
from pretended import MIB, Card, CardSpec, Machine, environment, unavailable  # noqa: E402
from prometheus_server import prometheus_server  # noqa: E402
from running_service import RunningService  # noqa: E402
from waiting import wait_for  # noqa: E402
from watched_service import SCRAPE_SECONDS  # noqa: E402

from app.jobs import Event  # noqa: E402
from tests.bench import card_models  # noqa: E402
from tests.bench.campaigns import commit, is_whole  # noqa: E402
from tests.bench.card_models import MIB_A_GB, MODELS, CardModel  # noqa: E402

RESULTS = Path(__file__).with_name("results")
CARDS_GB = (8, 12, 16, 24)
CONTEXT_BYTES, RESERVE_BYTES = 8 * MIB, 16 * MIB
# What the planner allows a prompt, and an unknown decode, does not shrink with the card.
FIXED_BYTES = 256 * MIB + CONTEXT_BYTES + RESERVE_BYTES
STRATEGIES = ("batched", "chunked", "per_frame")
PLACEMENTS = ("resident", "drop_text_encoder", "model_offload", "group_offload")
WAIT_SECONDS = 3600.0
# What a worker may grow between two equal jobs: Python's own objects and the host's allocator.
RESIDENT_GROWTH_BYTES = 96 * MIB
SETTINGS = {
    "FRAMEFIT_DEVICES": "auto",
    "FRAMEFIT_RESERVE_BYTES": str(RESERVE_BYTES),
    "FRAMEFIT_CALIBRATE_SECONDS": "0",
    "FRAMEFIT_MEMORY_WAIT_SECONDS": "600",
    "FRAMEFIT_HEARTBEAT_SECONDS": "1",
    "FRAMEFIT_MAX_ATTEMPTS": "20",  # the neighbour is ours: it may come back more often than three times
}


@dataclass(slots=True)
class Report:
    """What happened."""

    commit: str = ""
    seed: int = 0
    cards: dict[str, int] = field(default_factory=dict)  # name: MiB
    jobs: int = 0
    seconds: float = 0.0
    load_average: tuple[float, float, float] = (0.0, 0.0, 0.0)
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    retried: dict[str, int] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    placements: dict[str, int] = field(default_factory=dict)
    strategies: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    requeued: dict[str, int] = field(default_factory=dict)
    dropped_idle_weights: int = 0
    neighbour_moves: int = 0
    silent_queries: list[str] = field(default_factory=list)
    queries: int = 0
    card_bytes: dict[str, list[int]] = field(default_factory=dict)  # in use after equal jobs
    resident_bytes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def leaks(self) -> list[str]:
        """Cards and processes that hold more after an equal job than after the one before it."""
        found = [f"{name}: {held}" for name, held in self.card_bytes.items() if max(held[1:]) > held[0]]
        return found + [
            f"{name}: {held}"
            for name, held in self.resident_bytes.items()
            if len(held) > 2 and held[-1] - held[-2] > RESIDENT_GROWTH_BYTES
        ]

    def missing(self, placements: Sequence[str] = PLACEMENTS) -> list[str]:
        """Strategies and placements that no job took."""
        return [
            *(name for name in STRATEGIES if not self.strategies.get(name)),
            *(name for name in placements if not self.placements.get(name)),
        ]

    @property
    def clean(self) -> bool:
        """Whether no job was lost, no video is broken, no memory leaked, and each query answered."""
        return not (self.lost or self.corrupt or self.silent_queries or self.leaks)


class Neighbour:
    """Another program on each card: it takes most of the memory, some of it, or none, and gives it back."""

    def __init__(self, cards: Sequence[Card], seed: int) -> None:
        self._cards, self._draw = cards, random.Random(seed)
        self._over, self._at_rest = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self.moves = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._leave_all()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """It holds nothing until the end of the block."""
        with self._lock:
            self._at_rest.set()
            self._leave_all()
        yield
        self._at_rest.clear()

    def _leave_all(self) -> None:
        for card in self._cards:
            card.ballast_bytes = 0

    def _run(self) -> None:
        while not self._over.wait(self._draw.uniform(0.1, 1.5)):
            with self._lock:
                if not self._at_rest.is_set():
                    self._move(self._draw.choice(self._cards))

    def _move(self, card: Card) -> None:
        self.moves += 1
        kind = self._draw.choice(("none", "none", "some", "some", "most", "all"))
        if kind == "none":
            card.ballast_bytes = 0
        elif kind == "some":
            card.ballast_bytes = self._draw.randrange(card.capacity_bytes // 2)
        else:
            card.leave(self._draw.randrange(96 * MIB) if kind == "most" else 0)


def drawn_job(draw: random.Random, models: Sequence[CardModel], number: int) -> dict[str, Any]:
    """The fields of a job; the first ones go through models and strategies in turn."""
    model = models[number % len(models)] if number < 4 * len(models) else draw.choice(models)
    width, height, frames = draw.choice(model.shapes)
    fields: dict[str, Any] = {
        "model": model.name,
        "width": width,
        "height": height,
        "num_frames": frames,
        "num_inference_steps": draw.randint(1, 3),
        "seed": draw.randrange(1000),
        "prompt": draw.choice(("a grey wall", "a red wall", "rain")),
    }
    asked = ("auto", "chunked", "per_frame", "batched")
    strategy = asked[number // len(models)] if number < 4 * len(models) else draw.choice(("auto", *asked))
    if strategy == "chunked":
        fields["frames_per_chunk"] = 2
    if strategy != "auto":
        fields["decode_strategy"] = strategy
    elif draw.random() < 0.3:
        fields["exact_only"] = "false"
    return fields


class Campaign:
    """A service on cards, and the jobs that go through it."""

    def __init__(
        self, machine: Machine, service: RunningService, models: Sequence[CardModel], report: Report
    ) -> None:
        self.service = service
        self._machine, self._models, self._report = machine, models, report
        self._fields: dict[str, dict[str, Any]] = {}

    def run(self, jobs: list[dict[str, Any]], outstanding: int, begin_until: float = inf) -> None:
        """Hand in the jobs, at most so many at a time, none after `begin_until`; see each to its end."""
        waiting, pending = list(reversed(jobs)), set[str]()
        wait_for(self._profiles_are_there, WAIT_SECONDS, self.service.log)
        deadline = time.monotonic() + WAIT_SECONDS
        while (waiting or pending) and time.monotonic() < deadline:
            if time.monotonic() > begin_until:
                waiting.clear()
            while waiting and len(pending) < outstanding:
                fields = waiting.pop()
                job_id = str(self.service.submit(**fields)["id"])
                self._fields[job_id] = fields
                pending.add(job_id)
            for job_id in list(pending):
                if self._has_ended(job_id):
                    pending.remove(job_id)
            time.sleep(0.3)
        self._report.lost += [f"{job_id} has no end" for job_id in pending]

    def _profiles_are_there(self) -> bool:
        """Whether each model can be planned: profiles are traced once, which takes seconds a model."""
        asked = [self.service.http.post("/plan", json={"model": model.name}) for model in self._models]
        return all(answer.is_success for answer in asked)

    def _has_ended(self, job_id: str) -> bool:
        job = self.service.job(job_id)
        if job["status"] == "failed" and job["error"]["code"] == "out_of_memory":
            # The neighbour took what a denoise needed: the job says so, and its client asks again.
            stage = next((e.data["stage"] for e in self.service.events(job_id) if e.kind == "oom"), "?")
            code = f"out_of_memory in {stage}"
            self._report.retried[code] = self._report.retried.get(code, 0) + 1
            self.service.http.post(f"/jobs/{job_id}/retry").raise_for_status()
            return False
        if job["status"] in ("failed", "canceled"):
            self._report.lost.append(f"{job_id} {self._fields[job_id]}: {job['error']}")
        return job["status"] in ("succeeded", "failed", "canceled")

    def measure(self, fields: dict[str, Any]) -> None:
        """Run an equal job on each card in turn; note what the card and the worker hold after it."""
        http = self.service.http
        devices = http.get("/devices").raise_for_status().json()["devices"]
        names = [each["name"] for each in devices]
        for device in devices:
            for name in names:
                verb = "resume" if name == device["name"] else "pause"
                http.post(f"/devices/{name}/{verb}").raise_for_status()
            self.run([fields], 1)
            index = device["index"]
            card, worker = self._machine.cards[index], psutil.Process(device["worker_pid"])
            cached = wait_for(partial(self._settled, index), 120, self.service.log)
            self._report.card_bytes.setdefault(device["name"], []).append(cached)
            assert list(card.used_by) == [worker.pid], card.used_by
            held = self._report.resident_bytes.setdefault(device["name"], [])
            held.append(worker.memory_info().rss)
        for name in names:
            http.post(f"/devices/{name}/resume").raise_for_status()

    def _settled(self, index: int) -> int | None:
        """Bytes in use on the card once they do not change: the worker cleans up after a job."""
        card = self._machine.cards[index]
        before = card.used_by
        time.sleep(1.5)
        return sum(before.values()) if before == card.used_by else None

    def admit(self) -> None:
        """Count what the jobs say of themselves."""
        report, counts = self._report, {name: Counter[str]() for name in _COUNTED}
        for job_id, fields in self._fields.items():
            job, events = self.service.job(job_id), self.service.events(job_id)
            counts["models"][fields["model"]] += 1
            self._count_events(events, counts)
            if job["status"] != "succeeded":
                continue
            decode = job["decode"]
            counts["devices"][decode["device"]] += 1
            counts["strategies"][decode["strategy"]] += 1
            counts["reasons"][decode["reason"]] += 1
            report.dropped_idle_weights += bool(decode["dropped_bytes"])
            if not is_whole(self.service.data_dir, job_id, job["result"]["frames"]):
                report.corrupt.append(job_id)
        report.jobs = len(self._fields)
        for name, counted in counts.items():
            setattr(report, name, dict(counted.most_common()))

    @staticmethod
    def _count_events(events: Sequence[Event], counts: dict[str, Counter[str]]) -> None:
        for event in events:
            if event.kind == "loaded":
                counts["placements"][event.data["placement"]["kind"]] += 1
            if event.kind == "requeued":
                counts["requeued"][event.data["reason"]] += 1
            if event.kind in (
                "oom",
                "replan",
                "preview",
                "waiting_for_memory",
                "resumed_from_latents",
                "spill",
            ):
                counts["events"][event.kind] += 1


_EVENTS = ("oom", "replan", "preview", "waiting_for_memory", "resumed_from_latents", "spill")
_COUNTED = ("models", "devices", "placements", "strategies", "reasons", "events", "requeued")


def ask_the_board(prometheus: Prometheus, uuids: Sequence[str], report: Report, seconds: float) -> None:
    """Ask the queries of the board *memory*; those about cards must answer for each card."""
    end = time.time()
    span = Span(end - seconds, end, 5, 300, SCRAPE_SECONDS)
    board = next(board for name, board in boards() if name == "memory")
    for panel in panels(board):
        for target in panel.get("targets", ()):
            report.queries += 1
            if "> 0" in target["expr"]:
                continue  # it leaves zeros out, and is silent where nothing happened
            if not answers(prometheus, {**panel, "targets": [target]}, span):
                report.silent_queries.append(target["expr"])
            if "gpu_memory" in target["expr"]:
                asked = [replace(span, chosen={"gpu": uuid}).fill(target["expr"]) for uuid in uuids]
                report.silent_queries += [expr for expr in asked if not prometheus.now(expr)]


@contextmanager
def watched(folder: Path, service: RunningService) -> Iterator[Prometheus | None]:
    """A Prometheus that scrapes the service every second; None where it is not installed."""
    if shutil.which("prometheus") is None:
        yield None
        return
    target = f"127.0.0.1:{service.http.base_url.port}"
    with prometheus_server(folder, _free_port(), [target], scrape_seconds=SCRAPE_SECONDS) as prometheus:
        yield prometheus


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def campaign(
    jobs: int,
    seed: int,
    *,
    cards_gb: Sequence[int] = CARDS_GB,
    models: Sequence[CardModel] = MODELS,
    measured: bool = True,
    seconds: float = inf,
) -> Report:
    """Run the jobs on cards of these sizes. `measured`: with the equal jobs that show leaks. No job begins
    after so many `seconds`, but the equal ones.
    """
    report = Report(commit=commit(), seed=seed, load_average=os.getloadavg())
    started, draw = time.monotonic(), random.Random(seed)
    specs = [
        CardSpec(FIXED_BYTES + gb * MIB_A_GB * MIB, f"Pretended {gb} GB", CONTEXT_BYTES) for gb in cards_gb
    ]
    report.cards = {spec.name: spec.capacity_bytes // MIB for spec in specs}
    with tempfile.TemporaryDirectory(prefix="framefit-cards-") as name:
        folder = Path(name)
        machine = Machine.create(folder / "cards", specs)
        environ = environment(machine, nvml_stub.build(folder)) | SETTINGS
        (folder / "models").mkdir()
        environ["FRAMEFIT_MODELS_FILE"] = str(card_models.build(folder / "models", models))
        environ["FRAMEFIT_MODEL"] = models[0].name
        service = RunningService(folder / "data", environ)
        try:
            with watched(folder, service) as prometheus, Neighbour(machine.cards, seed) as neighbour:
                runner = Campaign(machine, service, models, report)
                drawn = [drawn_job(draw, models, number) for number in range(jobs)]
                parts = [drawn[: jobs // 2], drawn[jobs // 2 :]] if measured else [drawn]
                equal = {**drawn[0], "decode_strategy": "per_frame"}
                if measured:
                    with neighbour.at_rest():
                        runner.measure(equal)
                for part in parts:
                    runner.run(part, 2 * len(cards_gb), started + seconds)
                    if measured:
                        with neighbour.at_rest():
                            runner.measure(equal)
                runner.admit()
                report.neighbour_moves = neighbour.moves
                if prometheus is not None:
                    ask_the_board(prometheus, [card.uuid for card in machine.cards], report, 300)
        finally:
            service.stop()
    report.seconds = round(time.monotonic() - started, 1)
    return report


def as_markdown(report: Report) -> str:
    """The report for people."""

    def counted(found: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in found.items()) or "none"

    def mebibytes(held: dict[str, list[int]]) -> str:
        return "; ".join(
            f"{name}: {', '.join(str(round(each / MIB)) for each in held)}" for name, held in held.items()
        )

    load = ", ".join(f"{each:.1f}" for each in report.load_average)
    rows = [
        ("cards, MiB", counted(report.cards)),
        ("jobs", f"{report.jobs}: {counted(report.models)}"),
        ("on cards", counted(report.devices)),
        ("weight placements, by load", counted(report.placements)),
        ("strategies", counted(report.strategies)),
        ("reasons of plans", counted(report.reasons)),
        ("decodes after dropping idle weights", report.dropped_idle_weights),
        ("moves of the neighbour", report.neighbour_moves),
        ("events", counted(report.events)),
        ("requeued", counted(report.requeued)),
        ("ended with a code that the client retried", counted(report.retried)),
        ("**jobs lost**", len(report.lost)),
        ("**videos corrupt**", len(report.corrupt)),
        ("queries of the board *memory*, silent ones", f"{report.queries}, {len(report.silent_queries)}"),
        ("card MiB after equal jobs, at the start, in the middle, at the end", mebibytes(report.card_bytes)),
        ("workers' resident MiB then", mebibytes(report.resident_bytes)),
        ("**leaks**", len(report.leaks)),
    ]
    head = (
        "# The whole service on pretended cards\n\n"
        f"Commit {report.commit}, seed {report.seed}, {report.seconds:.0f} s, load average at the start "
        f"{load}. Tiny models; a neighbour takes and gives memory at random.\n\n| | |\n|---|---|\n"
    )
    return head + "\n".join(f"| {name} | {value} |" for name, value in rows) + "\n"


def main() -> int:
    """Run the campaign, write its results, and fail where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=inf, help="Begin no job after so long.")
    options = parser.parse_args()
    if reason := unavailable():
        raise SystemExit(reason)
    report = campaign(options.jobs, options.seed, seconds=options.seconds)
    found = asdict(report) | {"leaks": report.leaks, "missing": report.missing()}
    (RESULTS / "service_on_cards.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "service_on_cards.md").write_text(as_markdown(report), encoding="utf-8")
    sys.stdout.write(as_markdown(report))
    return 0 if report.clean and not report.missing() else 1


if __name__ == "__main__":
    sys.exit(main())
