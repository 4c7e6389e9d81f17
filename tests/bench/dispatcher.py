"""What dispatchers cost: plain calls through them, beside the same calls without, and a step's fixed cost.

A VAE has dispatchers while one of its streams is open. Takes CPU seconds with and without them, in turns in
one process. The decodes are tiny, so that the cost of calls weighs most. Also takes the CPU time of a step
whose network is on the meta device: only the code around the operators runs. Prints the medians, and writes
them to `results/dispatcher-cpu.md`.

    python tests/bench/dispatcher.py [--repeats N]
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
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from stream_vaes import build, kwargs_of, latents_of

from adaptive.stream import open_decode

OUT = Path(__file__).parent / "results" / "dispatcher-cpu.md"
NAMES = ("ltx-0.9.0", "ltx2", "wan-2.1", "cosmos", "hunyuanvideo-1.5")


def seconds_of(call: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    started = process_time()
    call()
    return process_time() - started


def plain_decode(name: str, repeats: int) -> tuple[float, float]:
    """Median CPU seconds of the VAE's own decode, without and with dispatchers."""
    vae = build(name)
    latents, kwargs = latents_of(vae, 2), kwargs_of(vae)

    def decode() -> None:
        vae.decode(latents, **kwargs)

    decode()
    without, having = [], []
    for _ in range(repeats):
        without.append(seconds_of(decode))
        with open_decode(vae, latents, **kwargs):
            having.append(seconds_of(decode))
    return median(without), median(having)


def one_layer(repeats: int, calls: int = 2000) -> tuple[float, float]:
    """Median CPU seconds of one call of the cheapest layer, without and with a dispatcher."""
    vae = build("ltx-0.9.0")
    layer = next(each for each in vae.decoder.modules() if isinstance(each, nn.SiLU))
    frames = torch.zeros(1)

    def forward() -> None:
        for _ in range(calls):
            layer(frames)

    without, having = [], []
    for _ in range(repeats):
        without.append(seconds_of(forward) / calls)
        with open_decode(vae, latents_of(vae, 2)):
            having.append(seconds_of(forward) / calls)
    return median(without), median(having)


def step_seconds(name: str, repeats: int) -> float:
    """Median CPU seconds of a step of one latent frame on the meta device, in the middle of a stream."""
    vae = nn.Module.to(build(name), "meta")
    latents = latents_of(vae, repeats + 8).to("meta")
    kwargs = {key: value.to("meta") for key, value in kwargs_of(vae).items()}
    with open_decode(vae, latents, **kwargs) as stream:
        for _ in range(4):
            stream.step(1)
        return median(seconds_of(lambda: stream.step(1)) for _ in range(repeats))


def row(call: str, without: float, having: float) -> str:
    """One line of the table."""
    return f"| {call} | {1e3 * without:.5f} | {1e3 * having:.5f} | {having / without:.3f} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    lines = ["| call | without, ms | with dispatchers, ms | ratio |", "|---|---|---|---|"]
    with torch.no_grad():
        for name in NAMES:
            lines.append(row(f"plain decode, {name}", *plain_decode(name, repeats)))
        lines.append(row("an activation of one number", *one_layer(repeats)))
    lines += ["", "| step of one latent frame on meta | ms |", "|---|---|"]
    lines += [f"| {name} | {1e3 * step_seconds(name, repeats):.2f} |" for name in NAMES]
    measured = f"torch {torch.__version__}, medians of {repeats}"
    what = f"Measured by `tests/bench/dispatcher.py`: cpu, 1 thread, {measured}."
    OUT.write_text("\n".join([what, "", *lines]) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
