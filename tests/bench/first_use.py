"""What the first decode of an enabled pipeline costs beside the plain call: CPU seconds, side by side.

    OMP_NUM_THREADS=1 python tests/bench/first_use.py [--repeats 3]

Each case runs in processes of its own: the VAE in its full width, without weights worth the name, decodes a
small video twice by its own call, the second time timed. Then the pipeline is enabled and decodes the same
latents for the first time. The difference is what planning, tracing and looking at the VAE cost: the video is
small, so that what a decode itself takes on the CPU hardly counts. Writes `results/first-use-cpu.json` and
`.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
OUT = Path(__file__).parent / "results"
BOUND_SECONDS = 0.5

_LTX = "AutoencoderKLLTXVideo"
_WAN = "AutoencoderKLWan"
# Name of the case: class, changes of the published configuration, dtype, latents.
CASES: dict[str, tuple[str, dict[str, Any], str, tuple[int, ...]]] = {
    "LTX-Video as published": (_LTX, {}, "bfloat16", (1, 128, 3, 2, 2)),
    "Wan 2.1 as published": (_WAN, {}, "bfloat16", (1, 16, 3, 2, 3)),
    "LTX-Video in float32": (_LTX, {}, "float32", (1, 128, 3, 2, 2)),
    "Wan 2.1 in float32": (_WAN, {}, "float32", (1, 16, 3, 2, 3)),
    "LTX, a configuration never seen": (
        _LTX,
        {"decoder_block_out_channels": (96, 192, 384, 384)},
        "float32",
        (1, 128, 3, 2, 2),
    ),
    "Wan, a configuration never seen": (_WAN, {"base_dim": 64}, "float32", (1, 16, 3, 2, 3)),
}


def measure(case: str) -> dict[str, float]:
    """CPU seconds of the plain call and of the first enabled one, in this process."""
    import diffusers
    import torch

    import adaptive

    vae_class, changes, dtype, shape = CASES[case]
    with torch.device("meta"):
        vae = getattr(diffusers, vae_class)(**changes)
    vae = vae.to(getattr(torch, dtype)).to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.fill_(0.01)
        latents = torch.randn(shape, dtype=vae.dtype)
        vae.decode(latents)
        started = time.process_time()
        vae.decode(latents)
        plain = time.process_time() - started
        started = time.process_time()
        attachment = adaptive.enable(SimpleNamespace(vae=vae))
        vae.decode(latents)
        enabled = time.process_time() - started
        started = time.process_time()
        vae.decode(latents)
        again = time.process_time() - started
    assert attachment.report.strategy == "batched"
    return {"plain": plain, "first": enabled, "second": again}


def main() -> None:
    """Measure every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", help="measure this case in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.case:
        sys.stdout.write(json.dumps(measure(arguments.case)) + "\n")
        return
    rows = []
    for case in CASES:
        runs = [_in_a_process(case) for _ in range(arguments.repeats)]
        typical = {name: median(run[name] for run in runs) for name in runs[0]}
        more = median(run["first"] - run["plain"] for run in runs)
        rows.append({"case": case, **{k: round(v, 3) for k, v in typical.items()}, "more": round(more, 3)})
    document = {"repeats": arguments.repeats, "bound_seconds": BOUND_SECONDS, "cases": rows}
    (OUT / "first-use-cpu.json").write_text(json.dumps(document, indent=1) + "\n")
    (OUT / "first-use-cpu.md").write_text(as_markdown(rows, arguments.repeats))
    if any(row["more"] > BOUND_SECONDS for row in rows):
        sys.exit(f"a first decode costs more than {BOUND_SECONDS} s")


def as_markdown(rows: list[dict[str, Any]], repeats: int) -> str:
    """The table of the results."""
    lines = [
        f"CPU seconds on one thread, medians of {repeats} processes. A first enabled decode may cost "
        f"{BOUND_SECONDS} s more than the plain call.\n",
        "| VAE | plain call | first enabled | second enabled | first costs more by |",
        "|---|---|---|---|---|",
        *(
            f"| {row['case']} | {row['plain']:.2f} | {row['first']:.2f} | {row['second']:.2f} "
            f"| {row['more']:.2f} |"
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


def _in_a_process(case: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
