"""Measures decoding: diffusers in one call, its own way to save memory, and ours by chunk size and by plan.

    python tests/bench/decode.py [--family ltx-0.9.0 ...] [--repeats 5] [--device cpu|cuda] [--peaks]
                                 [--out FOLDER]

Uses published configurations with random weights, at sizes that fit a small machine. Measured for each way:

- the error against the batched decode: largest difference over largest value;
- peak live bytes above weights and input, traced on meta tensors, with frames given away as they come;
- seconds: the median of interleaved repeats, in processor time on the CPU;
- the share of the decode's time before the first frames exist.

`auto` is the planner's own choice, planning included, with three fifths of the expected upper bytes of the
batched decode (all of them if no exact way needs less). Its memory profile is traced before, as for a loaded
model. Writes `decode-DEVICE.json` and `decode-DEVICE.md`; rows of other families are kept. `--peaks` renews
only the traced bytes in the files.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from decode_cases import CASES, Case, Frugal, build
from torch import Tensor

from adaptive import (
    AdaptiveDecoder,
    DecodePlan,
    DoesNotFit,
    Policy,
    plan,
    predict_peak,
    stream_decode,
)
from adaptive.device.huge_pages import restart_with_huge_pages
from adaptive.families import family_of
from adaptive.memory.live_bytes import trace_peak
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.profile_trace import profile_of
from adaptive.stream.offload import without_splitting

AUTO_SHARE = 0.6

Way = Callable[[Any, Tensor], Iterator[Tensor]]


@dataclass(frozen=True, slots=True)
class Row:
    """What one way of decoding one case gave."""

    family: str
    way: str
    repeats: int
    relative_error: float
    peak_live_bytes: int
    seconds: float
    time_to_batched: float
    first_frames_at: float  # share of the seconds gone when the first frames exist


def _batched(kwargs: dict[str, Any]) -> Way:
    def way(vae: Any, latents: Tensor) -> Iterator[Tensor]:
        with torch.no_grad(), without_splitting(vae):  # `decode_whole` chooses convolutions besides
            frames = family_of(vae).decode_whole(vae, latents, kwargs)
        yield frames

    return way


def _frugal(frugal: Frugal, kwargs: dict[str, Any]) -> Way:
    def way(vae: Any, latents: Tensor) -> Iterator[Tensor]:
        with frugal.applied(vae), torch.no_grad():
            yield from frugal.decode(vae, latents, kwargs)

    return way


def _chunked(size: int, kwargs: dict[str, Any]) -> Way:
    def way(vae: Any, latents: Tensor) -> Iterator[Tensor]:
        return stream_decode(vae, latents, frames_per_chunk=size, **kwargs)

    return way


def ways_of(case: Case, device: str) -> dict[str, Way]:
    """Every way of decoding the case on a device, batched first."""
    kwargs = _on(case.kwargs, device)
    ways = {"diffusers batched": _batched(kwargs)}
    if case.frugal is not None:
        ways[f"diffusers {case.frugal.name}"] = _frugal(case.frugal, kwargs)
    return ways | {f"framefit chunk {size}": _chunked(size, kwargs) for size in case.chunks}


def _planned(budget_bytes: int, profile: MemoryProfile, kwargs: dict[str, Any]) -> Way:
    def way(vae: Any, latents: Tensor) -> Iterator[Tensor]:
        decoder = AdaptiveDecoder(vae, profile=profile, policy=Policy(budget_bytes=budget_bytes))
        yield from decoder.frames(latents, **kwargs)

    return way


def planned(vae: Any, shape: tuple[int, ...]) -> DecodePlan:
    """What the planner chooses in `AUTO_SHARE` of what it expects the batched decode to take at most."""
    most = predict_peak(vae, shape, frames_per_chunk=shape[2]).upper_bytes
    try:
        return plan(vae, shape, budget_bytes=round(AUTO_SHARE * most))
    except DoesNotFit:
        return plan(vae, shape, budget_bytes=most)


def planned_peak(vae: Any, case: Case, chosen: DecodePlan) -> int:
    """Live bytes of the planner's choice."""
    size, strips = chosen.frames_per_chunk, chosen.tiles.rows
    if strips > 1:
        return predict_peak(vae, case.latents, frames_per_chunk=size, strips=strips).live_bytes
    return peak_live_bytes(case, _chunked(size, _on(case.kwargs, "meta")))


def _on(kwargs: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) for name, value in kwargs.items()}


def peak_live_bytes(case: Case, way: Way) -> int:
    """Of one way on the meta device, traced; frames are dropped as they come."""
    vae = build(case, "meta")
    latents = torch.empty(case.latents, device="meta")

    def consume() -> None:
        for frames in way(vae, latents):
            del frames

    return trace_peak(consume).peak_bytes


def timed(way: Way, vae: Any, latents: Tensor) -> tuple[float, float, Tensor]:
    """Seconds in all, seconds until the first frames, and the video."""
    clock = time.process_time if latents.device.type == "cpu" else _device_clock
    started, first, parts = clock(), None, []
    for frames in way(vae, latents):
        first = clock() if first is None else first
        parts.append(frames)
    ended = clock()
    return ended - started, (first or ended) - started, torch.cat(parts, 2)


def _device_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(family: str, repeats: int, device: str) -> Iterator[Row]:
    """One row a way; repeats are interleaved so that drifting load falls on all alike."""
    case = CASES[family]
    vae = build(case, "cpu").to(device)
    latents = torch.randn(case.latents, generator=torch.Generator().manual_seed(1)).to(device)
    ways = ways_of(case, device)
    chosen = planned(vae, case.latents)
    rung = chosen.strategy.value + ("" if chosen.tiles.rows == 1 else f" in {chosen.tiles.rows} strips")
    auto = f"framefit auto in {chosen.budget_bytes / 1e6:.0f} MB: {rung} {chosen.frames_per_chunk}"
    ways[auto] = _planned(chosen.budget_bytes, profile_of(vae), _on(case.kwargs, device))
    peaks = {name: peak_live_bytes(case, way) for name, way in ways_of(case, "meta").items()}
    peaks[auto] = planned_peak(vae, case, chosen)
    reference = timed(ways["diffusers batched"], vae, latents)[2]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    errors: dict[str, float] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds, first, video = timed(way, vae, latents)
            times[name].append((seconds, first))
            errors[name] = ((video - reference).abs().max() / reference.abs().max()).item()
    batched = statistics.median(seconds for seconds, _ in times["diffusers batched"])
    for name in ways:
        seconds = statistics.median(seconds for seconds, _ in times[name])
        share = statistics.median(first / seconds for seconds, first in times[name])
        yield Row(family, name, repeats, errors[name], peaks[name], seconds, seconds / batched, share)


def as_markdown(rows: list[Row], device: str) -> str:
    """The table, with how it was made."""
    head = (
        f"Measured by `tests/bench/decode.py`: {device}, {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, float32, "
        "medians of interleaved runs.\n\n"
        "| family | way | runs | error | peak live MB | seconds | of batched | first frames at |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {row.family} | {row.way} | {row.repeats} | {row.relative_error:.1e} "
        f"| {row.peak_live_bytes / 1e6:.1f} "
        f"| {row.seconds:.2f} | {row.time_to_batched:.2f} | {row.first_frames_at:.0%} |\n"
        for row in rows
    )


def earlier(options: argparse.Namespace) -> list[Row]:
    """Rows of the file that this run is going to write."""
    path = options.out / f"decode-{options.device}.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    return [Row(**row) for row in kept]


def with_new_peak(row: Row) -> Row:
    """The same row, its bytes traced anew; the planner's own choice keeps its bytes."""
    case = CASES[row.family]
    way = ways_of(case, "meta").get(row.way)
    return row if way is None else replace(row, peak_live_bytes=peak_live_bytes(case, way))


def write(rows: list[Row], options: argparse.Namespace) -> None:
    """Both documents, after each family: a run that is cut short keeps what it has."""
    options.out.mkdir(parents=True, exist_ok=True)
    rows = sorted(rows, key=lambda row: list(CASES).index(row.family))
    facts = {"machine": platform.machine(), "torch": torch.__version__}
    document = json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1)
    (options.out / f"decode-{options.device}.json").write_text(document + "\n")
    (options.out / f"decode-{options.device}.md").write_text(as_markdown(rows, options.device))


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--family", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peaks", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    restart_with_huge_pages()
    torch.set_num_threads(options.threads)
    rows = earlier(options)
    if options.peaks:
        write([with_new_peak(row) if row.family in options.family else row for row in rows], options)
        return
    for family in options.family:
        rows = [row for row in rows if row.family != family]
        for row in measure(family, options.repeats, options.device):
            rows.append(row)
            print(f"{row.family:10} {row.way:20} {row.relative_error:.1e} {row.seconds:.2f} s")  # noqa: T201
        write(rows, options)


if __name__ == "__main__":
    main()
