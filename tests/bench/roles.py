"""Twenty jobs on one worker, and on two with roles, each process on a core of its own:

    python tests/bench/roles.py

The built-in model on the CPU; its steps are chosen so that the decode takes 40 % of a job. The cases
alternate, so that the load of a shared machine falls on each. Seconds are those from the first claim to the
last end, as the job table's events tell them; a job before has loaded the models. The processor seconds are
those of the busiest worker, which the load of the machine hardly changes. Writes
tests/bench/results/roles.md.
"""

import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import psutil

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "acceptance"), str(HERE.parents[1])]

from role_workers import RoleWorkers  # noqa: E402

from tests.bench.campaigns import commit  # noqa: E402

JOBS = 20
ROUNDS = 3
DECODE_SHARE = 0.4
SHAPE = {"width": 128, "height": 128, "num_frames": 25, "decode_strategy": "batched"}
CASES = {
    "one worker": ["both"],
    "denoise and decode": ["denoise", "decode"],
    "both and decode": ["both", "decode"],
}
CALIBRATE = {"FRAMEFIT_CALIBRATE_SECONDS": "3"}
QUICK = {"FRAMEFIT_CALIBRATE_SECONDS": "0"}


def started(folder: str, roles: list[str], **environ: str) -> RoleWorkers:
    """Workers of these roles, each on its own core."""
    workers = RoleWorkers(Path(folder, "data"))
    cores = sorted(os.sched_getaffinity(0))
    for number, role in enumerate(roles):
        workers.start(f"bench/{number}/x", role, core=cores[number % len(cores)], **environ)
    return workers


def steps_of_share() -> tuple[int, float]:
    """Steps with which the decode takes its share of a job, and the share that was measured with them."""
    steps = 29
    with tempfile.TemporaryDirectory() as folder:
        workers = started(folder, ["both"], **QUICK)
        try:
            workers.wait_for_all([workers.submit(**SHAPE, num_inference_steps=2)])
            for _ in range(2):
                jobs = [workers.submit(**SHAPE, num_inference_steps=steps, seed=each) for each in range(2)]
                workers.wait_for_all(jobs)
                taken = [workers.events("finished", job)[-1].data["durations"] for job in jobs]
                decode = median(each["decoding"] + each.get("encoding", 0.0) for each in taken)
                denoise = median(each["denoising"] for each in taken)
                share = decode / (decode + denoise)
                if abs(share - DECODE_SHARE) < 0.03:
                    break
                steps = max(1, round(steps * decode * (1 - DECODE_SHARE) / DECODE_SHARE / denoise))
            return steps, share
        finally:
            workers.stop()


def measured(roles: list[str], steps: int) -> dict[str, float]:
    """Makespan of the jobs on workers of these roles."""
    with tempfile.TemporaryDirectory() as folder:
        workers = started(folder, roles, **CALIBRATE)
        try:
            warm = [workers.submit(**SHAPE, num_inference_steps=steps, seed=each) for each in range(2)]
            workers.wait_for_all(warm)
            before = [_processor_seconds(pid) for pid in workers.pids()]
            jobs = [workers.submit(**SHAPE, num_inference_steps=steps, seed=9 + each) for each in range(JOBS)]
            workers.wait_for_all(jobs)
            after = [_processor_seconds(pid) for pid in workers.pids()]
            began = min(workers.events("claimed", job)[0].at for job in jobs)
            ended = max(workers.events("finished", job)[-1].at for job in jobs)
            assert len({event.job_id for event in workers.events("denoised")}) == JOBS + len(warm)
            assert len(workers.events("denoised")) == JOBS + len(warm), "nothing is denoised twice"
            handed = [event for event in workers.events("handed_over") if event.job_id in jobs]
            busiest = max(b - a for a, b in zip(before, after, strict=True))
            return {"seconds": ended - began, "processor": busiest, "handed": len(handed)}
        finally:
            workers.stop()


def _processor_seconds(pid: int) -> float:
    times: Any = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Measure all cases in turn, and write the table."""
    version = commit()  # before the run: it may be another one afterwards
    steps, share = steps_of_share()
    sys.stdout.write(f"steps {steps}, the decode takes {share:.2f}\n")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    loads = [os.getloadavg()[0]]
    for _ in range(ROUNDS):
        for name, roles in CASES.items():
            found[name].append(measured(roles, steps))
            loads.append(os.getloadavg()[0])
            sys.stdout.write(f"{name}: {found[name][-1]} load {loads[-1]:.1f}\n")
            sys.stdout.flush()
    ones = [each["seconds"] for each in found["one worker"]]
    alone = median(each["processor"] for each in found["one worker"])
    rows = []
    for name, runs in found.items():
        seconds = [each["seconds"] for each in runs]
        ratios = [two / one for two, one in zip(seconds, ones, strict=True)]
        processor = median(each["processor"] for each in runs)
        handed = ", ".join(f"{each['handed']:.0f}" for each in runs)
        told = f"{median(seconds):.1f} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append(f"| {name} | {told} | {processor:.1f} | {processor / alone:.2f} | {handed} |")
    width, height, frames = (SHAPE[name] for name in ("width", "height", "num_frames"))
    width, height, frames = (SHAPE[name] for name in ("width", "height", "num_frames"))
    load = f"{min(loads):.1f} to {max(loads):.1f}"
    text = (
        f"`python tests/bench/roles.py`, commit {version}, {os.cpu_count()} cores, one thread of torch,\n"
        f"each worker on one core. {JOBS} jobs of {frames} frames of {width}x{height} with {steps} steps:\n"
        f"the decode takes {100 * share:.0f} % of a job. {ROUNDS} rounds in turn, medians.\n"
        f"The machine was shared: its load was {load}.\n\n"
        "| workers | all videos, s | of one worker's, same round | processor s of the busiest "
        "| of one worker's | handed over |\n|---|---:|---:|---:|---:|---:|\n"
    )
    (HERE / "results" / "roles.md").write_text(text + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
