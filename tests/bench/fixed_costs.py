"""What the library costs beside the operators: two checkouts of it, side by side, in turns.

    OMP_NUM_THREADS=1 python tests/bench/fixed_costs.py BEFORE [AFTER] [--rounds N]

BEFORE and AFTER are folders with a package `adaptive`; AFTER is this checkout by default. Each round starts a
process for each of them, the order alternating. A process decodes very small latents on the meta device by
`adaptive.stream_decode`, one latent frame a step: hardly anything but the code around operators runs. It
takes CPU seconds of a step in the middle of a decode, and of a decode with hardly a step: what opening a
stream costs. The least of several decodes counts, then the median of the rounds. Writes
`results/fixed-costs-cpu.md`; the exit status is 1 if a step's cost rose by more than a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

ROOT = Path(__file__).parents[2]
OUT = Path(__file__).parent / "results" / "fixed-costs-cpu.md"
NAMES = ("ltx-0.9.0", "wan-2.1", "cosmos")
FRAMES = 14  # latent frames of the long decode
SIDES = 2, 3
DECODES = 3
ALLOWED = 1.1
Costs = dict[str, tuple[float, float]]


def measure(configs: dict[str, Any]) -> Costs:
    """CPU seconds of opening a stream and of one step, in this process, for each VAE."""
    import diffusers
    import torch

    import adaptive

    def decode(vae: Any, latents: Any) -> float:
        started = process_time()
        for frames in adaptive.stream_decode(vae, latents, frames_per_chunk=1):
            del frames
        return process_time() - started

    found: Costs = {}
    with torch.no_grad():
        for name, (vae_class, config) in configs.items():
            with torch.device("meta"):
                vae = getattr(diffusers, vae_class)(**config).eval()
            channels = vae.config.get("latent_channels") or vae.config.get("z_dim")
            short, long = (torch.empty(1, channels, n, *SIDES, device="meta") for n in (2, FRAMES))
            decode(vae, short)
            seconds = [min(decode(vae, each) for _ in range(DECODES)) for each in (short, long)]
            step = (seconds[1] - seconds[0]) / (FRAMES - 2)
            found[name] = (seconds[0] - 2 * step, step)
    return found


def in_a_process(folder: Path, configs: str) -> Costs:
    """`measure` with the library of a checkout."""
    environ = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", str(folder)]
    done = subprocess.run(
        command, input=configs, env=environ, stdout=subprocess.PIPE, text=True, check=True, cwd=folder
    )
    found: Costs = json.loads(done.stdout.splitlines()[-1])
    return found


def table(before: list[Costs], after: list[Costs], title: str, place: int) -> tuple[list[str], bool]:
    """Lines of one table, and whether a cost rose by more than is allowed."""
    lines, slower = [f"| {title} | before, ms | after, ms | ratio |", "|---|---|---|---|"], False
    for name in NAMES:
        one, other = (1e3 * median(costs[name][place] for costs in rounds) for rounds in (before, after))
        slower = slower or (place == 1 and other > ALLOWED * one)
        lines.append(f"| {name} | {one:.2f} | {other:.2f} | {other / one:.2f} |")
    return [*lines, ""], slower


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("after", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", type=Path, help="measure this checkout; configurations come as JSON")
    options = parser.parse_args()
    if options.measure:
        sys.path.insert(0, str(options.measure))
        sys.stdout.write(json.dumps(measure(json.load(sys.stdin))) + "\n")
        return 0
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import torch
    from stream_vaes import CONFIGS

    configs = json.dumps({name: CONFIGS[name] for name in NAMES})
    rounds: dict[Path, list[Costs]] = {options.before.resolve(): [], options.after.resolve(): []}
    for number in range(options.rounds):
        for folder in list(rounds)[:: 1 if number % 2 else -1]:
            rounds[folder].append(in_a_process(folder, configs))
    before, after = rounds.values()
    steps, slower = table(before, after, "one step", 1)
    opening, _ = table(before, after, "opening a stream, and its first call", 0)
    head = (
        f"Measured by `tests/bench/fixed_costs.py`: decodes on the meta device, CPU time of one thread, "
        f"torch {torch.__version__}, medians of {options.rounds} rounds in which both took turns.\n"
    )
    text = "\n".join([head, *steps, *opening])
    OUT.write_text(text)
    sys.stdout.write(text)
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
