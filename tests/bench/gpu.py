"""Decodes on cards of several sizes, emulated on one GPU: diffusers' default, its manual settings, and ours.

    python tests/bench/gpu.py [--cards 8 12 16 24] [--cases ltx-49x512x768 ...] [--repeats 3] [--out FILE]
    python tests/bench/gpu.py --device cpu --tiny        # the same paths in a minute, without a GPU
    framefit bench compare FILE.json [OTHER.json]        # the tables

A second process holds all memory of the card above the emulated size, so that the driver reports it as used
and allocations beyond the size fail. Each case and way runs in a separate process. Measured are success,
median seconds after a warm-up, allocated and reserved bytes and the driver's figure; for ours the prediction
is added. The document begins with the hardware and versions. On the CPU, the emulated card is a limit on the
process's address space.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from gpu_cases import CASES, TINY_CASES, ways_of  # noqa: E402 - beside this file

GIB = 2**30
TINY_CARDS_GIB = [0.03125, 0.0625, 0.25]
LIMIT_SECONDS = 1800

# Holds what is free beyond the emulated card until its input is closed; small pieces, for a card already in
# use is fragmented.
BALLAST = """
import sys, torch
keep, piece, held = int(sys.argv[1]), 64 * 2**20, []
torch.zeros(1, device="cuda")
while torch.cuda.mem_get_info()[0] > keep + piece:
    held.append(torch.empty(piece, dtype=torch.uint8, device="cuda"))
print(torch.cuda.mem_get_info()[0], flush=True)
sys.stdin.read()
"""


@contextmanager
def emulated_card(device: str, card_bytes: int) -> Iterator[int]:
    """A card of that size; gives the bytes that are really free on it. On the CPU each process limits
    itself.
    """
    if device == "cpu":
        yield card_bytes
        return
    command = [sys.executable, "-c", BALLAST, str(card_bytes)]
    ballast = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert ballast.stdin is not None
    assert ballast.stdout is not None
    try:
        free = int(ballast.stdout.readline())
        if free < card_bytes * 0.95:
            raise SystemExit(f"only {free / GIB:.1f} GiB are free: not {card_bytes / GIB:g}")
        yield free
    finally:
        ballast.stdin.close()
        ballast.wait()


def decoded(case: str, way: str, options: argparse.Namespace, card_bytes: int) -> dict[str, Any]:
    """One row, measured in a separate process. A process that dies is a row, too."""
    numbers = [options.device, options.dtype, str(options.repeats), str(card_bytes)]
    command = [sys.executable, str(HERE / "gpu_decode.py"), case, way, *numbers]
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"took longer than {LIMIT_SECONDS} s"}
    if done.returncode:
        return {"ok": False, "error": f"the process ended with {done.returncode}: {done.stderr[-300:]}"}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def stamp(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    from adaptive.device.nvml import Nvml

    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "framefit")},
        "device": "CPU",
    }
    if device == "cuda":
        facts |= {
            "device": torch.cuda.get_device_name(),
            "total_bytes": torch.cuda.get_device_properties(0).total_memory,
            "driver": Nvml().driver_version,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]  # torch's
        }
    return facts


def main() -> None:
    """Parse, measure; the document is written after every row, so that a run cut short keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny VAEs on tiny cards")
    parser.add_argument("--cards", nargs="*", type=float, help="GiB")
    parser.add_argument("--cases", nargs="*")
    parser.add_argument("--ways", nargs="*", help="of those of the cases")
    parser.add_argument("--dtype", help="bfloat16 on a GPU, float32 on the CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases = TINY_CASES if options.tiny else CASES
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    cards = options.cards or (TINY_CARDS_GIB if options.tiny else [8, 12, 16, 24])
    out = options.out or HERE / "results" / f"gpu-{options.device}.json"
    document: dict[str, Any] = {"stamp": stamp(options.device), "dtype": options.dtype, "rows": []}
    for card_gib in cards:
        with emulated_card(options.device, round(card_gib * GIB)) as free_bytes:
            for name in options.cases or list(cases):
                for way in options.ways or ways_of(cases[name]):
                    row = decoded(name, way, options, round(card_gib * GIB))
                    row = {"card_gib": card_gib, "free_bytes": free_bytes, "case": name, "way": way, **row}
                    document["rows"].append(row)
                    print(json.dumps(row), flush=True)  # noqa: T201
                    out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
