"""What torch's caching allocator reserves for real streams of the published VAEs, at full size:

    python tests/bench/allocator.py [--models ltx-video ...]

The allocations of each stream are counted on meta tensors and given to a model of the allocator
(`caching_allocator.py`), with and without expandable segments. Nothing runs on a GPU, and what kernels
allocate inside is not counted: the figures are a lower bound of a real card's. Writes `results/allocator.md`
and `.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from caching_allocator import MIB, CachingAllocator, OutOfMemory  # noqa: E402

from adaptive.memory.live_bytes import LiveBytes  # noqa: E402
from adaptive.memory.margin_fit import COLD_MARGINS  # noqa: E402
from adaptive.memory.traced_vae import TracedVae  # noqa: E402
from adaptive.stream import decode_whole, open_decode  # noqa: E402
from tests.bench.campaigns import commit  # noqa: E402

PUBLISHED = ROOT / "app" / "pipelines" / "published" / "configurations"
# Published configuration, dtype, and latent frames, height and width of its usual video.
CASES = {
    "ltx-video": ("bfloat16", (16, 24, 40)),
    "ltx-2": ("bfloat16", (16, 24, 40)),
    "wan21-i2v-480p": ("bfloat16", (21, 60, 104)),
    "wan22-ti2v-5b": ("bfloat16", (31, 44, 80)),
    "cogvideox-5b-i2v": ("bfloat16", (13, 60, 90)),
    "hunyuanvideo-i2v": ("bfloat16", (13, 60, 90)),
    "hunyuanvideo15-i2v-480p": ("bfloat16", (31, 30, 53)),
    "svd-xt": ("float16", (25, 72, 128)),
    "i2vgen-xl": ("float16", (16, 88, 160)),
}
CHUNKS = (8, 4, 2, 1)
LEAST = {"whole": "least", "expandable": "least_expandable"}
STEADY_STEPS = 3  # with frames and without a new peak: a stream then repeats its allocations

Event = tuple[str, int, int]  # "allocate", "release" or "chunk"; which; bytes


class Recording(LiveBytes):
    """Notes every allocation and release in order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def note_temporary(self, extra_bytes: int, operator: str) -> None:
        super().note_temporary(extra_bytes, operator)
        if extra_bytes:
            self.events += [("allocate", -1, extra_bytes), ("release", -1, 0)]

    def _record(self, tensor: torch.Tensor, *, created: bool) -> None:
        before = self.live_bytes
        super()._record(tensor, created=created)
        if self.live_bytes > before:
            self.events.append(("allocate", tensor.untyped_storage()._cdata, self.live_bytes - before))

    def _release(self, key: int, reference: object) -> None:
        before = self.live_bytes
        super()._release(key, reference)
        if self.live_bytes < before:
            self.events.append(("release", key, 0))


@dataclass(frozen=True)
class Way:
    """One way to decode, and what the model says. Bytes above the weights; `least` completes the decode."""

    model: str
    chunk: int
    live: int
    reserved: int
    least: int
    split: int
    reserved_expandable: int
    least_expandable: int


def recorded(traced: TracedVae, shape: tuple[int, int, int], chunk: int) -> list[Event]:
    """The allocations of a decode whose caller copies each chunk's frames away before asking for the next."""
    latents = torch.empty(
        (1, traced.traits.latent_channels, *shape), device="meta", dtype=getattr(torch, traced.dtype)
    )
    kwargs, live = traced.decode_kwargs(), Recording()
    with torch.inference_mode(False), live.active():
        if chunk >= shape[0]:
            frames = decode_whole(traced.module, latents, **kwargs)
            del frames
            return live.events
        with open_decode(traced.module, latents, **kwargs) as stream:
            steady = 0
            while not stream.finished and steady < STEADY_STEPS:
                peak = live.peak_bytes
                frames = stream.step(chunk)
                steady = steady + 1 if frames.shape[2] and live.peak_bytes == peak else 0
                del frames
                live.events.append(("chunk", 0, 0))
            events = list(live.events)
    return events


def played(
    events: Sequence[Event], weights: Sequence[int], **options: Any
) -> tuple[CachingAllocator, int, int]:
    """The allocator after the events, the bytes that it had reserved before them, and the most split
    bytes."""
    allocator = CachingAllocator(**options)
    held = [allocator.allocate(each) for each in weights]
    allocator.give_back()  # as a plan does, which reads the free memory
    base_allocated, base_reserved = allocator.allocated_bytes, allocator.reserved_bytes
    allocator.peak_allocated, allocator.peak_reserved = base_allocated, base_reserved
    split_before, split = allocator.split_bytes, 0
    blocks: dict[int, Any] = {}
    for kind, key, size in events:
        if kind == "allocate":
            blocks[key] = allocator.allocate(size)
        elif kind == "release":
            allocator.release(blocks.pop(key))
        else:
            split = max(split, allocator.split_bytes - split_before)
    assert len(held) == len(weights)
    return allocator, base_reserved, split


def least_capacity(
    events: Sequence[Event], weights: Sequence[int], live: int, most: int, *, expandable: bool
) -> int:
    """Bytes above the weights with which the events complete, to 1 % of `live`."""
    _, base, _ = played([], weights, expandable=expandable)
    low, high = live // 2, most
    while high - low > live // 100:
        middle = (low + high) // 2
        try:
            played(events, weights, expandable=expandable, capacity_bytes=base + middle)
        except OutOfMemory:
            low = middle
        else:
            high = middle
    return high


def measured(model: str) -> Iterator[Way]:
    """Every way of one model."""
    config = json.loads((PUBLISHED / f"{model}.json").read_text())["components"]["vae"]
    dtype, shape = CASES[model]
    import diffusers

    traced = TracedVae(getattr(diffusers, config["class"][1]), config["config"], dtype)
    weights = [parameter.nbytes for parameter in traced.module.parameters()]
    for chunk in (shape[0], *(each for each in CHUNKS if each < shape[0])):
        events = recorded(traced, shape, chunk)
        default, base, split = played(events, weights)
        grown, base_grown, _ = played(events, weights, expandable=True)
        live = _live_peak(events)
        reserved, reserved_grown = default.peak_reserved - base, grown.peak_reserved - base_grown
        yield Way(
            model,
            chunk,
            live,
            reserved,
            least_capacity(events, weights, live, max(live, reserved), expandable=False),
            split,
            reserved_grown,
            least_capacity(events, weights, live, max(live, reserved_grown), expandable=True),
        )


def _live_peak(events: Sequence[Event]) -> int:
    sizes: dict[int, int] = {}
    now = peak = 0
    for kind, key, size in events:
        if kind == "allocate":
            sizes[key] = size
            now += size
        elif kind == "release":
            now -= sizes.pop(key)
        peak = max(peak, now)
    return peak


def table(ways: Sequence[Way]) -> str:
    """The results as Markdown."""
    lines = [
        "# The caching allocator at full size",
        "",
        f"`python tests/bench/allocator.py`, commit {commit()}. Shares of the live peak;"
        " nothing ran on a GPU. *Reserved*: what the allocator took with memory to spare. *Least*: the"
        " smallest card, above the weights, on which the decode completes; the allocator then gives unused"
        " segments back. *Split*: unused parts of split blocks between chunks.",
        "",
        "| VAE | chunk | live MiB | reserved | least | split | expandable: reserved | expandable: least |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    columns = "reserved", "least", "split", "reserved_expandable", "least_expandable"
    for way in ways:
        whole = "batched" if way.chunk == CASES[way.model][1][0] else way.chunk
        shares = " | ".join(f"{getattr(way, name) / way.live:.2f}" for name in columns)
        lines.append(f"| {way.model} | {whole} | {way.live / MIB:,.0f} | {shares} |")
    return "\n".join([*lines, "", *_summary(ways)]) + "\n"


def _summary(ways: Sequence[Way]) -> Iterator[str]:
    most = {
        name: max(getattr(way, name) / way.live for way in ways) for name in ("reserved", *LEAST.values())
    }
    yield (
        f"Most: reserved {most['reserved']:.2f}, least {most['least']:.2f} with whole segments and"
        f" {most['least_expandable']:.2f} with expandable ones."
    )
    cold = COLD_MARGINS["cuda"]
    margins = {
        "The bound of a card where nothing is known": (cold.upper_ratio, cold.upper_constant_bytes),
        "What is tried there where it probably fits": (cold.hoped_ratio or 0.0, cold.expected_constant_bytes),
    }
    for words, (ratio, constant) in margins.items():
        covered = [
            f"{sum(getattr(way, name) <= ratio * way.live + constant for way in ways)} with {kind} segments"
            for kind, name in LEAST.items()
        ]
        yield (
            f"{words}, {ratio} x live + {constant // MIB} MiB, covers the least of {' and '.join(covered)},"
            f" of {len(ways)}."
        )


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    asked = parser.parse_args()
    ways = []
    for model in asked.models:
        for way in measured(model):
            print(asdict(way), flush=True)  # noqa: T201 - a program
            ways.append(way)
    if asked.models == list(CASES):
        (HERE / "results" / "allocator.md").write_text(table(ways))
        (HERE / "results" / "allocator.json").write_text(
            json.dumps([asdict(way) for way in ways], indent=1) + "\n"
        )
    else:
        print(table(ways))  # noqa: T201 - a program


if __name__ == "__main__":
    main()
