"""Decodes under chaotic memory: free memory changes at random, and allocations really fail at random chunks.

    python tests/bench/chaos.py [--cases 200] [--families ltx-0.9.0 kl ...] [--seed 0] [--out FOLDER]

Each case is one decode of a random clip by `AdaptiveDecoder`, with a VAE of real layers and random weights. A
second process rewrites the stub driver's file of free memory every few milliseconds, so that the real
`pynvml` reports another value at each reading. Each reading also limits the process's address space
(RLIMIT_AS) to a random size, or removes the limit, so that allocations fail anywhere. The memory is enough
for one frame a chunk, except at single readings. A case passes if every frame equals that of an undisturbed
one-call decode and no latent frame was fed twice. SVD's layer sweep is one step, which is repeated after a
failure. Writes `chaos.json` and `chaos.md`; exits with 1 unless all cases pass.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
import nvml_stub  # noqa: E402 - beside this folder

FAMILIES = ("ltx-0.9.0", "wan-2.1", "svd", "kl")
# The largest difference over the largest value: what single precision sums differ by in another order.
EXACT = 1e-4


class Mover(threading.Thread):
    """Writes a random free memory within `bounds` into the stub's machine file until stopped."""

    def __init__(self, machine: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.bounds = (2**30, 2**31)
        self._machine = machine
        self._random = random.Random(seed)
        self._ended = threading.Event()

    def run(self) -> None:
        """A few calm stretches among quick swings."""
        while not self._ended.wait(self._random.choice((0.002, 0.01, 0.05))):
            gpu = nvml_stub.StubGpu(free_bytes=self._random.randint(*self.bounds))
            nvml_stub.write_machine(self._machine, [gpu])

    def stop(self) -> None:
        """End, and be sure of it."""
        self._ended.set()
        self.join()


def run_cases(options: argparse.Namespace, library: Path) -> Iterator[dict[str, Any]]:
    """A row for every case. If a process dies, its case has no row and a new one continues after it."""
    first = 0
    while first < options.cases:
        for row in _run_process(first, options, library):
            yield row
            first += 1


def _run_process(first: int, options: argparse.Namespace, library: Path) -> Iterator[dict[str, Any]]:
    """Rows of the cases from `first` on, decoded by one process."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Path(folder) / "machine"
        nvml_stub.write_machine(machine, [nvml_stub.StubGpu()])
        mover = Mover(machine, options.seed + first)
        mover.start()
        numbers = map(str, (first, options.cases, options.seed))
        command = [sys.executable, str(TESTS / "bench" / "chaos_decode.py"), *numbers, *options.families]
        environment = nvml_stub.environment(library, machine)
        environment["PYTHONPATH"] = str(TESTS)
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        assert child.stdout is not None
        case = first
        for line in child.stdout:
            row = json.loads(line)
            if "bounds" in row:
                mover.bounds = tuple(row["bounds"])
            else:
                case += 1
                yield row
        code = child.wait()
        mover.stop()
    if case < options.cases:
        yield {"case": case, "family": "lost", "error": f"the process ended with {code}"}


def passed(row: dict[str, Any]) -> bool:
    """All frames, all as they should be, none of the latent frames fed twice."""
    return "error" not in row and row["difference"] <= EXACT and row["in_order"]


def as_markdown(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The table, with how it was made."""
    by_family: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_family[row["family"]].append(row)
    head = (
        f"Measured by `tests/bench/chaos.py --cases {len(rows)} --seed {facts['seed']}`: "
        f"torch {facts['torch']}, diffusers {facts['diffusers']}, one CPU thread, float32. "
        "The stub driver's free memory moved every 2 to 50 milliseconds; allocation failures are real "
        "(RLIMIT_AS).\n\n"
        "| family | cases | passed | largest difference | allocation failures | cases with one | "
        "chunk size changed in | chunk sizes seen |\n|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(_line(family, each) for family, each in sorted(by_family.items()))


def _line(family: str, rows: list[dict[str, Any]]) -> str:
    whole = [row for row in rows if "error" not in row]
    sizes = sorted({size for row in whole for size in row["sizes"]})
    return (
        f"| {family} | {len(rows)} | {sum(map(passed, rows))} "
        f"| {max((row['difference'] for row in whole), default=float('nan')):.1e} "
        f"| {sum(row['retries'] for row in whole)} | {sum(row['retries'] > 0 for row in whole)} "
        f"| {sum(len(set(row['sizes'])) > 1 for row in whole)} | {', '.join(map(str, sizes))} |\n"
    )


def main() -> int:
    """Run, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", nargs="*", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        library = nvml_stub.build(Path(folder))
        for row in run_cases(options, library):
            rows.append(row)
            print("ok  " if passed(row) else "FAIL", json.dumps(row), flush=True)  # noqa: T201
    write(rows, options, time.monotonic() - started)
    return 0 if all(map(passed, rows)) else 1


def write(rows: list[dict[str, Any]], options: argparse.Namespace, seconds: float) -> None:
    """Both documents."""
    from importlib.metadata import version

    facts: dict[str, Any] = {name: version(name) for name in ("torch", "diffusers")}
    facts |= {"seed": options.seed, "seconds": round(seconds)}
    options.out.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    (options.out / "chaos.json").write_text(f'{{"facts": {json.dumps(facts)}, "rows": [\n{lines}\n]}}\n')
    (options.out / "chaos.md").write_text(as_markdown(rows, facts))


if __name__ == "__main__":
    sys.exit(main())
