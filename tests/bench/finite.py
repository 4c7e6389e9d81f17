"""What the check for NaN and infinite values costs: its time beside that of the chunk it checks, on the CPU.

Decodes published VAEs with random weights in chunks, and takes the CPU time of each step of the stream and
of the check of its frames. Also takes the check by a mask (`isfinite().all()`), which allocates one byte a
value. Prints the table and writes it to `results/finite-cpu.md`.

    python tests/bench/finite.py [--repeats N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from adaptive.memory.live_bytes import LiveBytes
from adaptive.stream import open_decode
from adaptive.stream.finite import is_finite
from tests.bench.decode_cases import CASES, build

OUT = Path(__file__).parent / "results" / "finite-cpu.md"
NAMES = ("ltx-0.9.0", "wan-2.1")
LATENT_FRAMES = 5


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, and its result."""
    started = process_time()
    result = call()
    return process_time() - started, result


def checked_bytes(call: Callable[[], Any]) -> int:
    """Peak bytes of the tensors that the call makes."""
    live = LiveBytes()
    with live.active():
        call()
    return live.peak_bytes


def measured(name: str, frames_per_chunk: int, repeats: int) -> list[str]:
    """One row of the table: medians over all chunks of all repeats."""
    case = CASES[name]
    vae = build(case, "cpu")
    steps, checks, masks, bytes_of = [], [], [], (0, 0)
    batch, channels, _, height, width = case.latents
    latents = torch.randn(batch, channels, LATENT_FRAMES, height, width)
    for _ in range(repeats):
        with torch.no_grad(), open_decode(vae, latents, **case.kwargs) as stream:
            while not stream.finished:
                seconds, frames = seconds_of(lambda: stream.step(frames_per_chunk))
                if not frames.shape[2]:
                    continue
                steps.append(seconds)
                checks.append(seconds_of(lambda: is_finite(frames))[0])  # noqa: B023 - called at once
                masks.append(seconds_of(lambda: bool(frames.isfinite().all()))[0])  # noqa: B023 - called at once
                bytes_of = (
                    checked_bytes(lambda: is_finite(frames)),  # noqa: B023 - called at once
                    checked_bytes(lambda: frames.isfinite().all()),  # noqa: B023 - called at once
                )
                shape = tuple(frames.shape[2:])
                del frames
    step, check, mask = median(steps), median(checks), median(masks)
    size = "x".join(map(str, shape))
    return [
        name,
        str(frames_per_chunk),
        size,
        f"{step * 1e3:.1f}",
        f"{check * 1e3:.3f}",
        f"{check / step:.3%}",
        f"{mask * 1e3:.3f}",
        f"{bytes_of[0]:,} / {bytes_of[1]:,}",
    ]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = ["VAE", "chunk", "frames", "step, ms", "check, ms", "share", "mask, ms", "bytes, check / mask"]
    rows = [measured(name, chunk, arguments.repeats) for name in NAMES for chunk in (1, 2)]
    version = torch.__version__
    text = f"Measured by `tests/bench/finite.py`: cpu, 1 thread, torch {version}, float32, medians.\n\n"
    for row in (head, ["---"] * len(head), *rows):
        text += f"| {' | '.join(row)} |\n"
    print(text)  # noqa: T201 - a program
    OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
