"""An hour of a fake fleet in a real Prometheus, for pictures: written into its database, not scraped.

Other programs come and go on the cards, and each decode takes the fastest strategy that fits.
"""

import random
import socket
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fake_fleet import GIB, MODELS, FakeApi, FakeCard, FakeFleet, FakeJob
from grafana_boards import Prometheus
from prometheus_server import prometheus_server

STEP_SECONDS = 30
STEPS = 120
# Strategies from the fastest on: bytes of the decode, its seconds, latent frames per chunk.
NEEDS = {"batched": (9 * GIB, 6.0, 13), "chunked": (4 * GIB, 8.0, 4), "per_frame": (1.2 * GIB, 12.0, 1)}
Lines = defaultdict[str, list[str]]


@contextmanager
def fleet_hour() -> Iterator[tuple[Prometheus, float, FakeCard]]:
    """Hand out a Prometheus, the time at which its hour ends, and a card that is worth a look."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        end = time.time() // STEP_SECONDS * STEP_SECONDS
        fleet = FakeFleet(folder, seed=7)
        text = folder / "hour.txt"
        text.write_text("\n".join(_written(fleet, end)) + "\n# EOF\n")
        make = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(text), str(folder / "tsdb")]
        subprocess.run(make, check=True, capture_output=True)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        with prometheus_server(folder, port, []) as prometheus:
            yield prometheus, end, next(one for one in fleet.cards if one.total_bytes == 24 * GIB)


def _written(fleet: FakeFleet, end: float) -> Iterator[str]:
    """Every sample of the hour in OpenMetrics, a series after the other."""
    lines: Lines = defaultdict(list)
    hosts = [_Host(api) for api in fleet.apis if api.name != "alpha-2"]
    for step in range(STEPS + 1):
        for host in hosts:
            host.turn(step)
            host.write(end - (STEPS - step) * STEP_SECONDS, lines)
    for series in sorted(lines):
        yield from (f"{series} {sample}" for sample in lines[series])


class _Host:
    """One host and the jobs on its cards."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api
        self._chance = random.Random(api.name)
        self._cards = list(api.cards)
        self._running: dict[str, tuple[FakeJob, int]] = {}  # by card, with the step of the end
        self._number = 0

    def turn(self, step: int) -> None:
        """Let half a minute pass."""
        self._api.cards = [self._with_neighbours(card, step) for card in self._cards]
        for card in self._api.cards:
            job, ends = self._running.get(card.uuid, (None, 0))
            if job is not None and step >= ends:
                self._finish(job, card)
            if card.is_up and card.uuid not in self._running and self._chance.random() < 0.6:
                self._begin(card, step)
        self._api.busy = frozenset(self._running)
        self._api.queued = round(4 + 3 * self._chance.random() + step / 40)
        self._api.running = len(self._running)
        self._api.http.count("/generate", "POST", 202, 0.01)
        self._api.http.count("/jobs/{job_id}", "GET", 200 if self._chance.random() < 0.97 else 404, 0.004)

    def _with_neighbours(self, card: FakeCard, step: int) -> FakeCard:
        """Another program takes memory in three steps in the second third of the hour."""
        taken = min(3, max(0, (step - 35 - card.index) // 8)) if step < 85 + card.index else 0
        busy = 0.9 if card.uuid in self._running else 0.04
        own = card.total_bytes // 5 if card.is_up else 0
        other = card.total_bytes // 50 + taken * card.total_bytes // 5
        return replace(card, own_bytes=own, other_bytes=other, utilization=busy)

    def _begin(self, card: FakeCard, step: int) -> None:
        self._number += 1
        fitting = [name for name, (need, *_) in NEEDS.items() if need < card.free_bytes]
        strategy = fitting[0] if fitting else "per_frame"
        need, seconds, frames = NEEDS[strategy]
        denoising = self._chance.uniform(25, 80)
        failed = self._chance.random() < 0.04
        job = FakeJob(
            id=f"{card.uuid}-{self._number}",
            card=card,
            round=0,
            model=self._chance.choice(list(MODELS)),
            outcome="failed" if failed else "succeeded",
            strategy=strategy,
            queued_seconds=self._chance.expovariate(1 / 60),
            stages={
                "loading": 0.4,
                "denoising": denoising,
                "decoding": seconds * self._chance.uniform(0.9, 1.2),
                "encoding": 1.5,
            },
            predicted_bytes=round(need * self._chance.uniform(0.9, 1.0)),
            ratio=self._chance.gauss(0.9, 0.05),
            frames_per_chunk=frames,
            frames=97,
            width=768,
            height=512,
            regret_seconds=self._chance.random() * (strategy != "batched"),
        )
        self._running[card.uuid] = (job, step + max(1, round(denoising / STEP_SECONDS)))
        self._api.apply([(job.id, *one) for one in list(job.claim())[:2]])

    def _finish(self, job: FakeJob, card: FakeCard) -> None:
        del self._running[card.uuid]
        rare = {"oom", "fallback"} if self._chance.random() < 0.05 else set()
        kept = {"plan", "finished", "webhook", *rare}
        events: list[tuple[str, str, dict[str, Any]]] = [
            (job.id, *one) for one in job.end() if one[0] in kept
        ]
        self._api.apply(events)

    def write(self, at: float, lines: Lines) -> None:
        """Add a sample of every series."""
        free: dict[str, float] = {}
        for family in self._api.metrics.registry.collect():
            for sample in family.samples:
                if not sample.name.startswith("framefit_"):
                    continue
                labels = {**sample.labels, "job": "framefit", "instance": f"{self._api.host}:8000"}
                written = ",".join(f'{name}="{value}"' for name, value in labels.items() if value)
                lines[f"{sample.name}{{{written}}}"].append(f"{sample.value} {at}")
                if sample.name == "framefit_gpu_memory_free_bytes":
                    free[written] = sample.value
                if sample.name == "framefit_gpu_memory_total_bytes":
                    ratio = free[written] / sample.value
                    lines[f"framefit:gpu_memory_free:ratio{{{written}}}"].append(f"{ratio} {at}")
