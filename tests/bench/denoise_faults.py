"""Denoises while a random allocation of a random step fails:

    python tests/bench/denoise_faults.py --jobs 100 --seed 1
    python tests/bench/denoise_faults.py --jobs 100 --seed 1 --cpu

The first runs on a pretended card (see tests/accelerator), the second on the CPU, where any operation of
torch fails as an allocation does. Each job must end with the latents of an untouched one, and compute no
denoiser call twice. A call that the failure cut off is made again: calls begun over calls asked counts it,
too. Writes tests/bench/results/denoise_faults.md, or denoise_faults-cpu.md.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
STEPS = 20
ALLOCATIONS = 400  # a failure on a card comes at most so many allocations after the end of a step
OnStep = Callable[[int, int], None]
sys.path[:0] = [str(HERE.parent / "accelerator"), str(HERE.parent), str(HERE.parents[1])]


def on_card(arguments: list[str]) -> int:
    """Run this script again in a process that has a pretended card."""
    import nvml_stub
    from pretended import CardSpec, Machine, environment, unavailable

    if reason := unavailable():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine.create(Path(folder, "cards"), [CardSpec()])
        environ = environment(machine, nvml_stub.build(Path(folder)))
        return subprocess.run([sys.executable, __file__, *arguments], env=environ, check=False).returncode


class Device:
    """The built-in model on a device."""

    def __init__(self, folder: Path, device: str) -> None:
        from app.config import Settings
        from app.models.entries import load_models
        from app.pipelines import tiny
        from app.worker.engine import Engine

        settings = Settings(data_dir=folder, calibrate_seconds=0, reserve_bytes=16 * 2**20)
        tiny.build(folder / "models" / "tiny")
        self.model = Engine(settings, device).load(load_models(settings)["tiny"], lambda *_: None)

    def denoise(self, on_step: OnStep, failing: AbstractContextManager[Any]) -> tuple[Any, Counter[str]]:
        """Latents, and counts of events and denoiser calls. The pipeline runs within `failing`."""
        from PIL import Image

        from app.jobs import JobSpec
        from app.worker import loaded_model
        from app.worker.denoise.elastic import ElasticDenoise
        from app.worker.denoise.room import Limits

        file = io.BytesIO()
        Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
        shape = {"width": 64, "height": 64, "num_frames": 17, "fps": 8}
        steps = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
        spec = JobSpec(prompt="a grey wall", model="tiny", seed=5, **shape, **steps)
        counts: Counter[str] = Counter()
        self.model.fit_denoise(spec, lambda *_: None)
        limits = Limits(may_use_cpu=False, wait_for=lambda _needed: False)
        denoise = ElasticDenoise(self.model, spec, limits, lambda kind, _data: counts.update([kind]))
        run_pipeline = loaded_model.run_pipeline

        def within(*args: Any, **kwargs: Any) -> Any:
            with failing:
                return run_pipeline(*args, **kwargs)

        loaded_model.run_pipeline = within
        try:
            clip = denoise.run(file.getvalue(), None, on_step)
        finally:
            loaded_model.run_pipeline = run_pipeline
        counts["computed"] += denoise.computed
        counts["begun"] += denoise.computed + denoise.repeated
        return clip.calls[0].latents.float().cpu(), counts


def fail_after(card: Any, step: int, allocations: int) -> OnStep:
    """An `on_step` that lets an allocation fail: the one after so many, counted from the end of a step."""
    if step == 0:
        card.fail_in = allocations

    def on_step(done: int, _total: int) -> None:
        if done == step > 0:
            card.fail_in = allocations

    return on_step


def nothing(_done: int, _total: int) -> None:
    """Nothing happens at a step."""


def jobs_on_card(device: Device, untouched: Any, jobs: int, draw: random.Random) -> Counter[str]:
    """Counts of jobs in which an allocation of the card fails."""
    from pretended.start import visible_cards

    card, total = visible_cards()[0], Counter[str]()
    for _ in range(jobs):
        on_step = fail_after(card, draw.randint(0, STEPS - 1), draw.randint(0, ALLOCATIONS))
        latents, counts = device.denoise(on_step, nullcontext())
        total.update(counted(latents, untouched, counts, failed=card.fail_in == -1))
        card.fail_in = -1
    return total


def jobs_on_cpu(device: Device, untouched: Any, jobs: int, draw: random.Random, last: int) -> Counter[str]:
    """Counts of jobs in which one of the pipeline's operations before number `last` fails."""
    from failing_operation import FailingOperation

    total = Counter[str]()
    for _ in range(jobs):
        failing = FailingOperation(draw.randrange(last))
        latents, counts = device.denoise(nothing, failing)
        total.update(counted(latents, untouched, counts, failed=failing.failed == 1))
    return total


def counted(latents: Any, untouched: Any, counts: Counter[str], *, failed: bool) -> Counter[str]:
    """Counts of one job; the difference in units of 1e-9."""
    difference = float((latents - untouched).abs().max())
    own = {"jobs": 1, "failures": int(failed), "equal": int(difference == 0.0)}
    return counts + Counter(own) + Counter({"worst": round(difference * 1e9)})


def campaign(arguments: argparse.Namespace) -> Counter[str]:
    """Counts of what happened in all jobs."""
    from failing_operation import FailingOperation

    with tempfile.TemporaryDirectory() as folder:
        device = Device(Path(folder), "cpu" if arguments.cpu else "cuda:0")
        operations = FailingOperation()
        untouched, once = device.denoise(nothing, operations if arguments.cpu else nullcontext())
        if not arguments.cpu:
            total = jobs_on_card(device, untouched, arguments.jobs, random.Random(arguments.seed))
        else:
            total = sharded(
                arguments.shards,
                lambda shard: jobs_on_cpu(
                    device,
                    untouched,
                    arguments.jobs // arguments.shards,
                    random.Random(arguments.seed + shard),
                    operations.seen,
                ),
            )
    total["asked"] = once["computed"] * total["jobs"]
    return total


def sharded(shards: int, work: Callable[[int], Counter[str]]) -> Counter[str]:
    """The sum of `work(shard)`, each in a fork of this process."""
    pipes, total = [], Counter[str]()
    for shard in range(shards):
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, json.dumps(work(shard)).encode())
            os._exit(0)
        os.close(writing)
        pipes.append(reading)
    for reading in pipes:
        with os.fdopen(reading) as file:
            total.update(json.loads(file.read()))
    return total


def report(total: Counter[str], arguments: argparse.Namespace) -> str:
    rows = [
        ("jobs, all of them succeeded", total["jobs"]),
        ("jobs in which an allocation failed", total["failures"]),
        ("jobs whose latents are bit for bit those of the untouched run", total["equal"]),
        ("sum of the largest differences of latents", f"{total['worst'] / 1e9:g}"),
        ("denoiser calls asked", total["asked"]),
        ("denoiser calls whose result was computed", total["computed"]),
        ("computed / asked", f"{total['computed'] / total['asked']:.4f}"),
        ("begun / asked (with calls that the failure cut off)", f"{total['begun'] / total['asked']:.4f}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    shards = f" --cpu --shards {arguments.shards}" if arguments.cpu else ""
    command = f"python tests/bench/denoise_faults.py --jobs {arguments.jobs} --seed {arguments.seed}{shards}"
    where = "on the CPU" if arguments.cpu else "on a pretended card"
    return f"`{command}`, {STEPS} steps a job, {where}.\n\n| | |\n|---|---|\n{table}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--shards", type=int, default=1, help="Processes that share the jobs on the CPU.")
    arguments = parser.parse_args()
    if not arguments.cpu and "PRETENDED_CARDS" not in os.environ:
        return on_card(sys.argv[1:])
    total = campaign(arguments)
    text = report(total, arguments)
    (RESULTS / f"denoise_faults{'-cpu' if arguments.cpu else ''}.md").write_text(text)
    print(text)  # noqa: T201
    whole = total["jobs"] == arguments.jobs
    return int(not whole or total["computed"] > 1.05 * total["asked"] or total["worst"] > 1e4)


if __name__ == "__main__":
    sys.exit(main())
