"""Two services share one PostgreSQL; the clock of one jumps by an hour while its processes are suspended.

    python tests/bench/clocks.py [--jobs 200] [--faults 20]

Jobs are submitted to both. Again and again the clock of the second service is set an hour forward, back or
right, or processes of either service are suspended, some for longer than a lease. At the end every job must
have succeeded once, and every video must decode to its last frame. Writes `results/clocks.md`.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "acceptance")]

import postgres_server  # noqa: E402
from running_service import RunningService  # noqa: E402

from app.jobs import JobStatus  # noqa: E402
from app.store import JobStore  # noqa: E402
from tests.bench.campaigns import commit, is_whole  # noqa: E402
from tests.bench.fault_kinds.clocks import HOUR, ShiftedClock, Suspensions  # noqa: E402
from tests.bench.kills import FIELDS  # noqa: E402

RESULTS = Path(__file__).with_name("results")
ENVIRONMENT = {"FRAMEFIT_LEASE_SECONDS": "8", "FRAMEFIT_HEARTBEAT_SECONDS": "1", "OMP_NUM_THREADS": "1"}
LEASE_SECONDS = 8.0
JOB_SECONDS = 3600.0
SHIFTS = (HOUR, -HOUR, 0)
SUSPENSIONS = ("suspend_worker", "suspend_api", "suspend_supervisor", "suspend_service")


@dataclass(slots=True)
class Report:
    """Counts of jobs, faults and losses."""

    jobs: int
    faults: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    requeued: Counter[str] = field(default_factory=Counter)
    of_services: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled or corrupted."""
        return not (self.lost or self.doubled or self.corrupt)


class Target(Suspensions):
    """A service whose processes are suspended."""

    def __init__(self, service: RunningService) -> None:
        self.service = service
        self.lease_seconds = LEASE_SECONDS


def campaign(jobs: int, faults: int, model: Path, *, seed: int | None = None) -> Report:
    """Run the jobs through the faults."""
    random.seed(seed)
    started, report = time.monotonic(), Report(jobs)
    with postgres_server.running() as url, tempfile.TemporaryDirectory(prefix="framefit-clocks-") as name:
        folder = Path(name)
        clock = ShiftedClock(folder)
        with _services(folder, model, url, clock) as services, closing(JobStore(url)) as store:
            ids = [services[n % 2].submit(**FIELDS, seed=n)["id"] for n in range(jobs)]
            over = threading.Event()
            attacker = threading.Thread(target=_attack, args=(services, clock, faults, report, over))
            attacker.start()
            _wait_for_the_end(store, ids)
            over.set()
            attacker.join()
            _count(store, ids, folder, report)
    report.seconds = round(time.monotonic() - started, 1)
    return report


@contextmanager
def _services(folder: Path, model: Path, url: str, clock: ShiftedClock) -> Iterator[list[RunningService]]:
    """Two services whose jobs' files lie in one folder, as on a share."""
    (folder / "jobs").mkdir()
    with ExitStack() as stack:
        services = []
        for number, own in enumerate(({}, clock.environ)):
            data_dir = folder / f"service-{number}"
            (data_dir / "models").mkdir(parents=True)
            (data_dir / "models" / "tiny").symlink_to(model)
            (data_dir / "jobs").symlink_to(folder / "jobs")
            services.append(RunningService(data_dir, {**ENVIRONMENT, "FRAMEFIT_DATABASE_URL": url, **own}))
            stack.callback(services[-1].stop)
        yield services


def _attack(
    services: Sequence[RunningService],
    clock: ShiftedClock,
    faults: int,
    report: Report,
    over: threading.Event,
) -> None:
    for number in range(faults):
        if over.wait(random.uniform(0.5, 3)):
            break
        clock.set(shift := SHIFTS[number % len(SHIFTS)])
        report.faults[f"clock set {shift:+d} s" if shift else "clock set right"] += 1
        if over.wait(random.uniform(0.5, 3)):
            break
        kind, target = random.choice(SUSPENSIONS), random.choice(services)
        getattr(Target(target), kind)()
        report.faults[kind.replace("_", " ")] += 1
    clock.set(0)


def _wait_for_the_end(store: JobStore, ids: Sequence[str]) -> None:
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        counts = store.counts()
        if sum(count for status, count in counts.items() if status.is_terminal) >= len(ids):
            return
        time.sleep(0.3)


def _count(store: JobStore, ids: Sequence[str], folder: Path, report: Report) -> None:
    for job_id in ids:
        job, events = store.get(job_id), store.events_after(0, 100_000, job_id)
        ends = [event.data["outcome"] for event in events if event.kind == "finished"]
        claims = [event.data["worker_id"] for event in events if event.kind == "claimed"]
        report.attempts[len(claims)] += 1
        report.of_services[claims[-1].rpartition("/")[2] if claims else "none"] += 1
        report.requeued.update(event.data["reason"] for event in events if event.kind == "requeued")
        if job.status is not JobStatus.SUCCEEDED:
            report.lost.append(job_id)
        elif not is_whole(folder, job_id, FIELDS["num_frames"]):
            report.corrupt.append(job_id)
        if ends.count("succeeded") > 1:
            report.doubled.append(job_id)
    report.lost += ["accepted twice"] * (sum(store.counts().values()) - len(ids))


def as_markdown(report: Report) -> str:
    """Return the report for people."""
    rows = [
        ("jobs, half of them submitted to each service", report.jobs),
        *((f"fault: {kind}", count) for kind, count in sorted(report.faults.items())),
        (
            "jobs that ended in the one and in the other service",
            " / ".join(map(str, report.of_services.values())),
        ),
        (
            "jobs by how often they were started",
            ", ".join(f"{n} x {k}" for k, n in sorted(report.attempts.items())),
        ),
        ("requeued", ", ".join(f"{why}: {n}" for why, n in report.requeued.items()) or "never"),
        ("**jobs lost**", len(report.lost)),
        ("**jobs finished twice**", len(report.doubled)),
        ("**videos corrupt**", len(report.corrupt)),
        ("seconds", report.seconds),
        ("load average at the end", round(os.getloadavg()[0], 1)),
        ("commit", commit()),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    head = "# Jumping clocks and suspended processes\n\n`python tests/bench/clocks.py`: two services on one "
    return f"{head}PostgreSQL, model `tiny` on the CPU.\n\n| | |\n|---|---|\n{table}\n"


def main() -> None:
    """Run the campaign, write its results, and fail where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--faults", type=int, default=20)
    options = parser.parse_args()
    from app.pipelines import tiny

    with tempfile.TemporaryDirectory() as name:
        report = campaign(options.jobs, options.faults, tiny.build(Path(name) / "tiny"))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "clocks.md").write_text(as_markdown(report))
    sys.stdout.write(as_markdown(report))
    sys.exit(not report.clean)


if __name__ == "__main__":
    main()
