"""Kills worker and supervisor at random while twelve jobs run, and counts the videos: no job may be lost.

    python tests/bench/kills.py [--runs 30] [--jobs 12] [--kills 6]

Each run has a service of its own with the default number of attempts. Six times a job is waited for, then a
random moment, then the worker or the whole service is killed with SIGKILL. At the end every job must have
succeeded with a video that decodes to its last frame. Runs are appended to `results/kills.jsonl` with their
seed, drawn anew, and the commit, until there are as many as asked for; so a campaign can go on another day.
`results/kills.md` has the sums. Exits with 1 if a video is missing.
"""

import argparse
import json
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "acceptance")]

from running_service import RunningService  # noqa: E402

from app.jobs import JobStatus  # noqa: E402
from app.store import StoreError, open_store  # noqa: E402
from tests.bench.campaigns import commit, is_whole  # noqa: E402

RESULTS = Path(__file__).with_name("results")
# A second or so of work each, so that there is a middle to be hit in.
FIELDS = {"width": 96, "height": 96, "num_frames": 17, "num_inference_steps": 6, "fps": 8}
KINDS = ("worker", "supervisor")
# A job is killed up to this long after it was seen running: while it loads, denoises, decodes, or later.
MOMENT_SECONDS = 1.5
JOB_SECONDS = 900.0


@dataclass(slots=True)
class Run:
    """One run: `videos` of `jobs` are whole; `attempts` are jobs by the number of their attempts."""

    seed: int
    commit: str
    jobs: int
    videos: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    held: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run(seed: int, model: Path, *, jobs: int = 12, kills: int = 6) -> Run:
    """Run the jobs through the kills that the seed draws."""
    draw = random.Random(seed)
    started = time.monotonic()
    result = Run(seed, commit(), jobs)
    with tempfile.TemporaryDirectory(prefix="framefit-kills-") as folder:
        data_dir = Path(folder) / "data"
        (data_dir / "models").mkdir(parents=True)
        (data_dir / "models" / "tiny").symlink_to(model)
        with _service(data_dir) as services:
            ids = [services.now.submit(**FIELDS, seed=number)["id"] for number in range(jobs)]
            for _ in range(kills):
                if not services.wait_for_a_running_job():
                    break
                time.sleep(draw.uniform(0, MOMENT_SECONDS))
                kind = draw.choice(KINDS)
                services.kill(kind)
                result.kills[kind] = result.kills.get(kind, 0) + 1
            services.wait_for_the_end(ids)
            _count(services.now, ids, result)
    result.seconds = round(time.monotonic() - started, 1)
    return result


class Services:
    """Services that follow each other on one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.now = RunningService(data_dir)
        self._store = open_store(self.now.settings)
        self._killed: set[tuple[str, int]] = set()

    def wait_for_a_running_job(self) -> bool:
        """Wait until a job runs that was claimed after the last kill; False if all have ended before."""
        while True:
            with suppress(StoreError):
                if self._running() - self._killed:
                    return True
                if not any(self._store.counts()[each] for each in (JobStatus.QUEUED, JobStatus.RUNNING)):
                    return False
            time.sleep(0.02)

    def _running(self) -> set[tuple[str, int]]:
        return {(job.id, job.token) for job in self._store.page(status=JobStatus.RUNNING)}

    def kill(self, kind: str) -> None:
        """Kill the worker, or the supervisor and with it everything; then there is a new service."""
        self._killed |= self._running()
        if kind == "worker":
            for process in self.now.processes():
                with suppress(psutil.Error):
                    if "worker" in process.cmdline():
                        process.kill()
            return
        self.now.kill()
        self.now = RunningService(self._data_dir)

    def wait_for_the_end(self, ids: Sequence[str]) -> None:
        """Wait until each of the jobs has ended."""
        deadline = time.monotonic() + JOB_SECONDS
        while time.monotonic() < deadline:
            with suppress(StoreError):
                if all(self._store.get(job_id).status.is_terminal for job_id in ids):
                    return
            time.sleep(0.1)

    def close(self) -> None:
        """Stop the service."""
        self._store.close()
        self.now.stop(signal.SIGINT)


@contextmanager
def _service(data_dir: Path) -> Iterator[Services]:
    services = Services(data_dir)
    try:
        yield services
    finally:
        services.close()


def _count(service: RunningService, ids: Sequence[str], result: Run) -> None:
    attempts: Counter[str] = Counter()
    with closing(open_store(service.settings)) as store:
        for job_id in ids:
            job = store.get(job_id)
            kinds = [event.kind for event in store.events_after(0, 10_000, job_id)]
            attempts[str(kinds.count("claimed"))] += 1
            result.held += "held" in kinds
            if job.status is JobStatus.SUCCEEDED and is_whole(service.data_dir, job_id, FIELDS["num_frames"]):
                result.videos += 1
            else:
                result.lost.append(str((job.error or {"code": job.status})["code"]))
    result.attempts = dict(sorted(attempts.items()))


def recorded(path: Path) -> list[dict[str, Any]]:
    """Return the runs that were recorded so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def as_markdown(runs: Sequence[dict[str, Any]]) -> str:
    """Return the sums, and a row for each run."""
    videos, jobs = sum(run["videos"] for run in runs), sum(run["jobs"] for run in runs)
    killed = {kind: sum(run["kills"].get(kind, 0) for run in runs) for kind in KINDS}
    held = sum(run["held"] for run in runs)
    begun: Counter[str] = Counter()
    for each in runs:
        begun.update(each["attempts"])
    rows = "\n".join(
        f"| {number} | {run['seed']} | {run['commit']} | {run['kills'].get('worker', 0)} | "
        f"{run['kills'].get('supervisor', 0)} | {run['videos']} of {run['jobs']} | {run['seconds']:.0f} |"
        for number, run in enumerate(runs, 1)
    )
    return (
        "# Twelve jobs under six kills\n\n"
        "`python tests/bench/kills.py`; model `tiny` on the CPU, the default of three attempts.\n\n"
        f"**{videos} of {jobs} videos** in {len(runs)} runs, under {killed['worker']} kills of the worker "
        f"and {killed['supervisor']} of the supervisor. Jobs by how often they were started: "
        f"{', '.join(f'{n} x {k}' for k, n in sorted(begun.items()))}. Jobs held back: {held}.\n\n"
        "| run | seed | commit | worker killed | supervisor killed | videos | seconds |\n"
        f"|---|---|---|---|---|---|---|\n{rows}\n"
    )


def main() -> None:
    """Run what is missing, record it, and fail where a video is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--kills", type=int, default=6)
    options = parser.parse_args()
    from app.pipelines import tiny

    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "kills.jsonl"
    with tempfile.TemporaryDirectory() as name:
        model = tiny.build(Path(name) / "tiny")
        while len(recorded(path)) < options.runs:
            done = run(secrets.randbits(32), model, jobs=options.jobs, kills=options.kills)
            with path.open("a") as file:
                file.write(json.dumps(asdict(done)) + "\n")
            (RESULTS / "kills.md").write_text(as_markdown(recorded(path)))
    runs = recorded(path)
    sys.stdout.write(as_markdown(runs))
    sys.exit(any(run["videos"] != run["jobs"] for run in runs))


if __name__ == "__main__":
    main()
