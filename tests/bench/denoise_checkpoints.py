"""Checkpoints of the denoise: what they cost at real latent sizes, and whether every pipeline resumes.

    python tests/bench/denoise_checkpoints.py cost FOLDER      # milliseconds a step, written to FOLDER's disk
    python tests/bench/denoise_checkpoints.py campaign         # each case, interrupted at three random steps

Prints JSON, as stored in `results/`. The cost is that of a loop whose denoiser takes no time: schedulers,
latents and what the encoders give have the sizes of the published models.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from adaptive.denoise.encoders import EncoderCall, EncoderRecord
from adaptive.denoise.randomness import Randomness
from adaptive.denoise.record import DenoiseLoop
from adaptive.denoise.values import flatten
from adaptive.denoise.watch import watch
from app.worker.denoise.checkpoint_file import Checkpoint, CheckpointFiles
from app.worker.denoise.writer import CheckpointWriter

CPU = torch.device("cpu")
STEPS = 20


class FreeDenoiser(nn.Module):
    """Gives the same prediction at once."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.prediction = torch.randn(shape)

    def forward(self, _latents: Tensor) -> Tensor:
        return self.prediction


def ltx() -> tuple[Any, dict[str, tuple[int, ...]]]:
    """LTX-Video, 97 frames of 768x512: its latents as tokens, Euler."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    encoded = {"encode_prompt": (2, 128, 4096), "vae.encode": (1, 256, 1, 16, 24)}
    components = {
        "transformer": FreeDenoiser((1, 13 * 16 * 24, 128)),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }
    return SimpleNamespace(components=components), encoded


def wan() -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Wan 2.1, 81 frames of 832x480, UniPC, with a clip that was encoded in its full length."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    encoded = {"encode_prompt": (2, 512, 4096), "encode_image": (1, 257, 1280)}
    encoded["vae.encode"] = (1, 32, 21, 60, 104)
    components = {"transformer": FreeDenoiser((1, 16, 21, 60, 104)), "scheduler": scheduler}
    return SimpleNamespace(components=components), encoded


def run(pipe: Any, after_step: Callable[[], None]) -> list[float]:
    """Run the loop; returns the milliseconds of each step."""
    denoiser, scheduler = pipe.components["transformer"], pipe.components["scheduler"]
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(denoiser.prediction.shape)
    taken = []
    for timestep in scheduler.timesteps:
        started = time.perf_counter()
        latents = scheduler.step(denoiser(latents), timestep, latents, return_dict=False)[0]
        after_step()
        taken.append((time.perf_counter() - started) * 1000)
    return taken


def cost(model: Callable[[], tuple[Any, dict[str, tuple[int, ...]]]], folder: Path) -> dict[str, Any]:
    """Milliseconds a step: not watched, watched, with every step on disk before the next, and in a thread."""
    pipe, encoded = model()
    tensors: dict[str, Tensor] = {}
    randomness = Randomness(CPU, [torch.Generator()])
    calls = [EncoderCall(name, flatten(torch.randn(shape), tensors)) for name, shape in encoded.items()]
    encoders = EncoderRecord(tuple(calls), tensors, randomness.state())
    files = CheckpointFiles(folder / "inputs.safetensors", folder / "steps.safetensors")
    writer = CheckpointWriter(files)
    sizes: list[int] = []
    captures: list[float] = []

    def watched(after_step: Callable[[DenoiseLoop], None]) -> float:
        loop = DenoiseLoop(pipe, CPU)
        loop.begin(randomness)
        with watch(pipe, [loop]):

            def step() -> None:
                loop.step_done()
                after_step(loop)

            return statistics.median(run(pipe, step))

    def checkpoint(loop: DenoiseLoop) -> Checkpoint:
        started = time.perf_counter()
        made = Checkpoint({}, STEPS, encoders, loop.capture())
        captures.append((time.perf_counter() - started) * 1000)
        return made

    def on_disk(loop: DenoiseLoop) -> None:
        sizes.append(files.write(checkpoint(loop)))

    def in_thread(loop: DenoiseLoop) -> None:
        if not writer.is_busy:
            writer.start(checkpoint(loop))

    bare = statistics.median(run(pipe, lambda: None))
    only_watched = watched(lambda _: None)
    each_on_disk = watched(on_disk)
    capture_ms = statistics.median(captures)
    threaded = watched(in_thread)
    writer.wait()
    return {
        "step_ms": round(bare, 3),
        "watched_ms": round(only_watched - bare, 3),
        "capture_ms": round(capture_ms, 3),
        "every_step_on_disk_ms": round(each_on_disk - bare, 3),
        "every_step_in_thread_ms": round(threaded - bare, 3),
        "per_step_at_20_seconds_and_steps_of_2_seconds_ms": round(only_watched - bare + capture_ms / 10, 3),
        "first_checkpoint_bytes": sizes[0],
        "checkpoint_bytes": sizes[-1],
    }


def campaign(steps: int, seed: int) -> dict[str, Any]:
    """For each case: interrupted at three random steps, resumed in a fresh pipeline."""
    import denoise_cases

    found: dict[str, Any] = {}
    for name in denoise_cases.CASES:
        whole = denoise_cases.denoised(name, steps)
        runs = []
        for after in sorted(random.Random(f"{seed} {name}").sample(range(1, steps), 3)):
            part = denoise_cases.denoised(name, steps, record_after=after)
            rest = denoise_cases.denoised(name, steps, resume=part)
            calls = part.denoiser_calls + rest.denoiser_calls
            runs.append(
                {
                    "interrupted_after": after,
                    "same_bits": denoise_cases.same_bits(whole, rest),
                    "denoiser_calls_made_twice": calls - whole.denoiser_calls,
                    "encoder_calls_when_resumed": rest.encoder_calls,
                }
            )
        found[name] = runs
        print(name, all(run["same_bits"] for run in runs), file=sys.stderr)  # noqa: T201
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cost", "campaign"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.what == "cost":
        torch.set_num_threads(1)
        result: Any = {
            "ltx 97x768x512": cost(ltx, given.folder),
            "wan 81x480x832": cost(wan, given.folder),
        }
    else:
        result = {"steps": given.steps, "seed": given.seed, "cases": campaign(given.steps, given.seed)}
    print(json.dumps(result, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
