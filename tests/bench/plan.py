"""Measures how long `POST /plan` takes in the service's own process: 2000 requests, one after another.

    python tests/bench/plan.py [--requests 2000] [--profile]

Each request passes through the whole application without a socket: routing, checks, planning and the answer's
bytes. The model is LTX at random sizes and lengths, on a card whose worker has reported margins, speeds and
idle weights. On a busy machine run it under `chrt -f 10`; otherwise it measures the scheduler. Writes
`results/plan-cpu.json` and `.md`; `--profile` prints where the time goes instead.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
OUT = Path(__file__).parent / "results"
GIB = 2**30
BOUND_MILLISECONDS = 10.0


def worker_device() -> dict[str, Any]:
    """What a worker with a 24 GB card reports once it has decoded some videos."""
    from adaptive.memory.learned_costs import LearnedCosts
    from adaptive.types import Chunking, LatentShape, MeasuredPeak, Strategy
    from app.config import Settings
    from app.models.entries import load_models
    from app.models.profiles import load

    settings = Settings()
    profile = load(settings, load_models(settings)["ltx-video"])
    assert profile is not None
    learned = LearnedCosts.none("cuda NVIDIA GeForce RTX 4090", "2.13.0+cu130 91900")
    draw = random.Random(0)
    for _ in range(60):
        frames = draw.randint(4, 16)
        shape = LatentShape(1, 128, frames, draw.randint(10, 24), draw.randint(10, 40))
        for strategy, size in ((Strategy.BATCHED, frames), (Strategy.CHUNKED, 2), (Strategy.PER_FRAME, 1)):
            live = profile.live_bytes(shape, size)
            measured = MeasuredPeak(round(draw.uniform(1.05, 1.3) * live), live // 20, 30_000_000)
            learned.residuals.observe(
                profile.traits.family,
                profile.dtype,
                strategy,
                live_bytes=live,
                measured=measured,
                chunking=Chunking(frames, size),
            )
            seconds = 1e-4 * shape.area * frames * draw.uniform(0.95, 1.05) * (1 + 1 / size)
            learned.speeds.observe(profile, shape, size, seconds)
    return {
        "name": "cuda:0",
        "kind": "cuda NVIDIA GeForce RTX 4090",
        "total_bytes": 24 * GIB,
        "free_bytes": 7 * GIB,
        "capacity_bytes": 23 * GIB,
        "own_bytes": 12 * GIB,
        "droppable_bytes": 4 * GIB,
        "reload_seconds": 1.5,
        "models": ["ltx-video"],
        "learned": learned.summary(),
    }


def bodies(count: int) -> list[bytes]:
    """Requests of every kind of size, some of which fit nowhere, some with demands of their own."""
    draw = random.Random(1)
    found = []
    for _ in range(count):
        body = {
            "model": "ltx-video",
            "prompt": "a boat",
            "width": 32 * draw.randint(8, 40),
            "height": 32 * draw.randint(8, 24),
            "num_frames": 8 * draw.randint(1, 32) + 1,
        }
        body |= {"exact_only": False} if draw.random() < 0.25 else {}
        body |= {"memory_budget_bytes": draw.randint(1, 12) * GIB} if draw.random() < 0.25 else {}
        found.append(json.dumps(body).encode())
    return found


async def ask(app: Any, body: bytes) -> int:
    """The status of one request; the answer is read to its end."""
    sent: list[dict[str, Any]] = []
    asked = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        message = next(asked, None)
        if message is None:
            await asyncio.sleep(3600)  # the client stays
        assert message is not None
        return message

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    headers.append((b"content-length", str(len(body)).encode()))
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
    scope |= {"scheme": "http", "path": "/plan", "raw_path": b"/plan", "query_string": b"", "root_path": ""}
    scope |= {"headers": headers, "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000)}
    await app(scope, receive, send)
    return int(sent[0]["status"])


async def measure(app: Any, requests: list[bytes]) -> tuple[list[float], list[float], dict[int, int]]:
    """Milliseconds of each request, by the clock and of this process's own work; answers by status."""
    taken, worked, statuses = [], [], dict[int, int]()
    for body in requests:
        started, busy = time.perf_counter(), time.process_time()
        status = await ask(app, body)
        taken.append(1000 * (time.perf_counter() - started))
        worked.append(1000 * (time.process_time() - busy))
        statuses[status] = statuses.get(status, 0) + 1
    return sorted(taken), sorted(worked), statuses


def run(count: int, *, profiled: bool = False) -> dict[str, Any]:
    """Start the application, warm it up, and measure."""
    from app.api import create_app
    from app.config import Settings

    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(data_dir=Path(folder), poll_seconds=1.0))
        service = app.state.service
        service.start()
        try:
            service.store.register_worker("bench", worker_device())
            asyncio.run(measure(app, bodies(50)))
            if profiled:
                _profile(service, bodies(count))
            load = os.getloadavg()[0]
            taken, worked, statuses = asyncio.run(measure(app, bodies(count)))
        finally:
            service.stop()
    ninety_nine = min(count - 1, count * 99 // 100)
    return {
        "requests": count,
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "p50_milliseconds": round(taken[count // 2], 2),
        "p99_milliseconds": round(taken[ninety_nine], 2),
        "p50_processor_milliseconds": round(worked[count // 2], 2),
        "p99_processor_milliseconds": round(worked[ninety_nine], 2),
        "bound_milliseconds": BOUND_MILLISECONDS,
        "load_of_the_machine": round(load, 1),
        "real_time_priority": os.sched_getscheduler(0) == os.SCHED_FIFO,
    }


def _profile(service: Any, requests: list[bytes]) -> None:
    """Planning runs in a thread of the framework's, where a profiler of the loop would not look."""
    from adaptive.errors import AdaptiveError
    from app.api.problems import Problem
    from app.api.requests.job_spec import job_spec
    from app.scheduling.plan_view import rungs_json

    profiler = cProfile.Profile()
    for body in requests:
        fields = json.loads(body)
        profiler.enable()
        try:
            verdict = service.admission.admit(job_spec(fields, service.models))
            rungs_json(verdict.rungs, verdict.plan)
            assert verdict.largest is not None
        except (AdaptiveError, Problem):
            pass
        finally:
            profiler.disable()
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)


def as_markdown(found: dict[str, Any]) -> str:
    """The figures, with how they were made."""
    statuses = ", ".join(f"{number} x {status}" for status, number in found["statuses"].items())
    return (
        f"Measured by `tests/bench/plan.py` on two CPU cores under a load of {found['load_of_the_machine']}, "
        f"{'in real-time priority' if found['real_time_priority'] else 'in usual priority'}: "
        f"{found['requests']} requests `POST /plan` in the service's process ({statuses}).\n\n"
        "| | median | 99th percentile | bound on it |\n|---|---|---|---|\n"
        f"| by the clock | {found['p50_milliseconds']} ms | {found['p99_milliseconds']} ms "
        f"| {found['bound_milliseconds']:.0f} ms |\n"
        f"| processor time of the process | {found['p50_processor_milliseconds']} ms "
        f"| {found['p99_processor_milliseconds']} ms | |\n"
    )


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    found = run(options.requests, profiled=options.profile)
    print(as_markdown(found))  # noqa: T201
    if not options.profile:
        (OUT / "plan-cpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (OUT / "plan-cpu.md").write_text(as_markdown(found))


if __name__ == "__main__":
    main()
