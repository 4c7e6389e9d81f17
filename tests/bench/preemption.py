"""A long job of low priority and ten short ones of high priority, with and without preemption:

    python tests/bench/preemption.py

The service runs as processes on the CPU with the built-in model, once with FRAMEFIT_PREEMPT_AFTER_SECONDS=1
and once with 0. The short jobs come at once when the long one has begun to denoise. Seconds are from then on,
as the job table's events tell them. Writes tests/bench/results/preemption.md.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "acceptance"), str(HERE.parents[1])]

from running_service import RunningService  # noqa: E402

from app.pipelines import tiny  # noqa: E402
from tests.bench.campaigns import commit  # noqa: E402

SHORTS = 10
LONG = {"width": 256, "height": 256, "num_frames": 97, "num_inference_steps": 100, "fps": 24, "seed": 1}
SHORT = {"width": 128, "height": 128, "num_frames": 17, "num_inference_steps": 4, "fps": 12}
CASES = {"with": "1", "without": "0"}


def measured(after_seconds: str) -> dict[str, Any]:
    """What happened to the jobs with this setting."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        tiny.build(data / "models" / "tiny")
        service = RunningService(data, {"FRAMEFIT_PREEMPT_AFTER_SECONDS": after_seconds})
        try:
            service.finished(service.submit(**SHORT)["id"])  # the model is loaded
            long = service.submit(**LONG)["id"]
            service.wait_until(long, lambda job: bool(job["stage"] == "denoising" and job["progress"] > 0.05))
            began = time.time()
            shorts = [service.submit(**SHORT, priority=5, seed=each)["id"] for each in range(SHORTS)]
            jobs = [service.finished(each) for each in (*shorts, long)]
            return result(service, shorts, long, began, jobs)
        finally:
            service.stop()


def result(
    service: RunningService, shorts: list[str], long: str, began: float, jobs: list[dict[str, Any]]
) -> dict[str, Any]:
    """One column of the table."""

    def ended(job_id: str) -> float:
        return next(event.at for event in service.events(job_id) if event.kind == "finished") - began

    ends = [ended(job_id) for job_id in shorts]
    asked = LONG["num_inference_steps"] + SHORTS * SHORT["num_inference_steps"]
    saved = [each for job in (*shorts, long) for each in service.events(job)]
    computed = sum(each.data.get("steps_since_checkpoint", 0) for each in saved)
    return {
        "first video of the short jobs, s": f"{min(ends):.1f}",
        "mean of the short jobs' videos, s": f"{sum(ends) / SHORTS:.1f}",
        "last video of the short jobs, s": f"{max(ends):.1f}",
        "the long job's video, s": f"{ended(long):.1f}",
        "all videos, s": f"{max(*ends, ended(long)):.1f}",
        "preemptions": sum(job["preemptions"] for job in jobs),
        "steps asked": asked,
        "steps computed": computed,
    }


def main() -> None:
    """Measure both, and write the table."""
    version = commit()  # before the run: it may be another one afterwards
    columns = {}
    loads = []
    for name, after_seconds in CASES.items():
        loads.append(os.getloadavg()[0])
        columns[name] = measured(after_seconds)
        sys.stdout.write(f"{name}: {columns[name]}\n")
    loads.append(os.getloadavg()[0])
    rows = [f"| {what} | {columns['with'][what]} | {columns['without'][what]} |" for what in columns["with"]]
    load = f"{min(loads):.1f} to {max(loads):.1f}"
    text = (
        f"`python tests/bench/preemption.py`, commit {version}, {os.cpu_count()} cores,\n"
        f"one thread of torch. The machine was shared: its load was {load} at the ends of the runs.\n"
        "Seconds count from the moment at which the short jobs came.\n\n"
        "| a long job and ten short ones of higher priority | with preemption | without |\n|---|---:|---:|\n"
    )
    (HERE / "results" / "preemption.md").write_text(text + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
