"""Two threads on one VAE: one decodes in a stream, the other plainly, and every frame is compared.

    python tests/bench/two_threads.py [--seconds 60] [--families ltx-0.9.0 ...] [--out FOLDER]

For each family (a row of `tests/stream_vaes.py`) the two threads decode different latents again and again for
so many seconds. The stream's chunk size changes with each decode. The other thread calls the VAE's own
`decode`. Both are compared with what each gives alone: a decode is wrong if its relative error is above 2e-5
or if it raises. Interpreter switches are as frequent as possible, so that the threads meet in all layers.
Writes `two-threads.json` and `two-threads.md`; the exit status is 1 if any decode was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from stream_vaes import CONFIGS, build, kwargs_of, latents_of, relative_error  # noqa: E402

from adaptive import stream_decode  # noqa: E402
from adaptive.stream import decode_whole  # noqa: E402

FAMILIES = ("ltx-0.9.0", "ltx2", "cosmos", "magvit", "hunyuanvideo-1.5")
LATENT_FRAMES = 5
TOLERANCE = 2e-5
SWITCH_SECONDS = 1e-5


@dataclass(slots=True)
class Decodes:
    """Decodes of one thread: how many, how many of them were wrong, and the first few causes."""

    done: int = 0
    wrong: int = 0
    causes: list[str] = field(default_factory=list)

    def note(self, cause: str | None) -> None:
        self.done += 1
        if cause is not None:
            self.wrong += 1
            self.causes = [*self.causes, cause][:3]


@dataclass(frozen=True, slots=True)
class Row:
    """What the two threads of one family did."""

    family: str
    seconds: float
    streamed: Decodes
    plain: Decodes


def run_family(name: str, seconds: float) -> Row:
    """Both threads on one VAE for so long; each ends with the decode that it is in."""
    vae = build(name).requires_grad_(False)
    ours, other = (latents_of(vae, LATENT_FRAMES, seed=seed) for seed in (1, 2))
    kwargs = kwargs_of(vae)
    plain = type(vae).decode

    def stream(turn: int) -> Tensor:
        size = 1 + turn % (LATENT_FRAMES - 1)
        return torch.cat(list(stream_decode(vae, ours, frames_per_chunk=size, **kwargs)), 2)

    def call(_turn: int) -> Tensor:
        with torch.no_grad():
            frames: Tensor = plain(vae, other, **kwargs, return_dict=False)[0]
        return frames

    expected = decode_whole(vae, ours, **kwargs), call(0)
    stream(0)  # what is made once for a VAE is made before the clock runs
    found = Decodes(), Decodes()
    ends = time.monotonic() + seconds
    threads = [
        threading.Thread(target=_repeat, args=(work, *beside, ends))
        for work, *beside in ((stream, expected[0], found[0]), (call, expected[1], found[1]))
    ]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Row(name, round(time.monotonic() - started, 1), *found)


def _repeat(work: Callable[[int], Tensor], expected: Tensor, decodes: Decodes, ends: float) -> None:
    for turn in count():
        if time.monotonic() > ends:
            return
        decodes.note(_cause(work, turn, expected))


def _cause(work: Callable[[int], Tensor], turn: int, expected: Tensor) -> str | None:
    """Why a decode is wrong; None if it is right."""
    try:
        frames = work(turn)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:160]
    if frames.shape != expected.shape:
        return f"shape {tuple(frames.shape)} instead of {tuple(expected.shape)}"
    error_share = relative_error(frames, expected)
    return None if error_share <= TOLERANCE else f"relative error {error_share:.1e}"


def as_markdown(rows: list[Row]) -> str:
    """The table, with how it was made."""
    seconds = min((row.seconds for row in rows), default=0)
    head = (
        f"Measured by `tests/bench/two_threads.py --seconds {seconds:.0f}`: torch {version('torch')}, "
        f"diffusers {version('diffusers')}, two threads on one VAE, one CPU thread an operation, float32.\n\n"
        "| family | seconds | streamed decodes | wrong | plain decodes meanwhile | wrong |\n"
        "|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {row.family} | {row.seconds:.0f} | {row.streamed.done} | {row.streamed.wrong} "
        f"| {row.plain.done} | {row.plain.wrong} |\n"
        for row in rows
    )


def main() -> int:
    """Run, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--families", nargs="*", default=FAMILIES, choices=CONFIGS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_SECONDS)
    rows: list[Row] = []
    for name in options.families:
        rows.append(run_family(name, options.seconds))
        print(json.dumps(asdict(rows[-1])), flush=True)  # noqa: T201
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {name: version(name) for name in ("torch", "diffusers")}
    document = {"facts": facts, "rows": [asdict(row) for row in rows]}
    (options.out / "two-threads.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.out / "two-threads.md").write_text(as_markdown(rows))
    return 1 if any(row.streamed.wrong or row.plain.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
