"""Compares predicted and real memory: live bytes of all families, resident-set peaks, and ComfyUI's formulas.

    python tests/bench/prediction.py [--quick] [--part live comfyui coverage]

- `live`: `predict_peak` against the tensor accounting of a real run, for every configuration of the streaming
  tests, batched and in chunks of 1, 2 and 4, at three shapes.
- `comfyui`: published configurations in bfloat16 at users' shapes: a trace at that very shape against our
  scaled prediction and ComfyUI's formula.
- `coverage`: replays the real resident-set peaks of `recordings.py`. After five observations of a family's
  strategy: how often `upper_bytes` covers the next peak, and how far it lies above.

Writes `results/prediction-cpu.json` and `.md`; parts that are not requested are kept.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import recordings

from adaptive.memory.margin_fit import TRUSTED_OBSERVATIONS
from adaptive.memory.margins import LearnedMargins
from adaptive.types import Cut, LatentShape, MeasuredPeak

HERE = Path(__file__).parent
OUT = HERE / "results"
SHAPES = ((3, 4, 6), (5, 6, 3), (6, 5, 5))  # latent frames, height, width
CHUNKS = (99, 1, 2, 4)
GIB = 2**30


def live(shapes: Sequence[tuple[int, int, int]]) -> Iterator[dict[str, Any]]:
    """Predicted and counted live bytes of every configuration, chunk size and shape."""
    import torch

    from adaptive.functions import stream_decode
    from adaptive.memory.live_bytes import LiveBytes
    from adaptive.memory.profile_trace import predict_peak, profile_of

    sys.path.insert(0, str(HERE.parent))
    from stream_vaes import CONFIGS, build, kwargs_of

    for name in CONFIGS:
        vae = build(name)
        traits = profile_of(vae).traits
        for sides in shapes:
            latents = torch.randn(1, traits.latent_channels, *sides)
            for chunk in CHUNKS:
                counter = LiveBytes()
                with counter.active():
                    stream = stream_decode(vae, latents, frames_per_chunk=chunk, **kwargs_of(vae))
                    deque(stream, maxlen=0)
                shape = LatentShape(*latents.shape)
                predicted = predict_peak(vae, shape, frames_per_chunk=chunk).live_bytes
                yield {
                    "config": name,
                    "family": traits.family,
                    "latent_frames_height_width": sides,
                    "frames_per_chunk": min(chunk, sides[0]),
                    "predicted_bytes": predicted,
                    "counted_bytes": counter.peak_bytes,
                    "error": round(predicted / counter.peak_bytes - 1, 5),
                }


# comfy/sd.py's `memory_used_decode`, for latents [T, h, w] in 2-byte numbers: bytes.
PUBLISHED: dict[str, tuple[str, dict[str, Any], tuple[int, int, int], str]] = {
    "LTX 49x512x768": ("AutoencoderKLLTXVideo", {}, (7, 16, 24), "900 T h w 8 8 8"),
    "LTX 121x768x1280": ("AutoencoderKLLTXVideo", {}, (16, 24, 40), "900 T h w 8 8 8"),
    "SVD 25x576x1024": (
        "AutoencoderKLTemporalDecoder",
        {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "layers_per_block": 2,
        },
        (25, 72, 128),
        "2178 T h w 64",
    ),
    "Wan 81x480x832": ("AutoencoderKLWan", {}, (21, 60, 104), "7000 h w 64"),
    "SD 16x320x512": (
        "AutoencoderKL",
        {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
        },
        (16, 40, 64),
        "2178 T h w 64",
    ),
}


def comfyui() -> Iterator[dict[str, Any]]:
    """Ours and ComfyUI's figure for the one-call decode beside a trace at the very shape."""
    import torch

    from adaptive.memory.live_bytes import trace_peak
    from adaptive.memory.profile_trace import trace_profile
    from adaptive.stream import decode_whole

    for name, (vae_class, config, sides, formula) in PUBLISHED.items():
        import diffusers

        with torch.device("meta"):
            vae = getattr(diffusers, vae_class)(**config).eval()
        vae = torch.nn.Module.to(
            vae, "meta", torch.bfloat16
        )  # some parameters are made on the CPU all the same
        profile = trace_profile(vae_class, dict(vae.config), "bfloat16")
        shape = LatentShape(1, profile.traits.latent_channels, *sides)
        sizes = (1, shape.channels, *sides)
        latents = torch.empty(sizes, device="meta", dtype=torch.bfloat16)
        traced = trace_peak(lambda vae=vae, latents=latents: decode_whole(vae, latents)).peak_bytes
        ours, theirs = profile.live_bytes(shape, shape.frames), 2 * _formula(formula, sides)
        yield {
            "case": name,
            "traced_bytes": traced,
            "ours_bytes": ours,
            "comfyui_bytes": theirs,
            "formula": formula,
            "our_error": round(ours / traced - 1, 4),
            "comfyui_error": round(theirs / traced - 1, 4),
        }


def _formula(formula: str, sides: tuple[int, int, int]) -> int:
    known = dict(zip("Thw", sides, strict=True))
    product = 1
    for factor in formula.split():
        product *= known[factor] if factor in known else int(factor)
    return product


def coverage(rows: Sequence[recordings.Row], seed: int = 0) -> dict[str, Any]:
    """Upper bound over real peak of every decode after the first five of its family and strategy, in random
    order.
    """
    order = list(rows)
    random.Random(seed).shuffle(order)
    residuals, seen = LearnedMargins("cpu"), dict[tuple[str, str], int]()
    ratios, missed = [], []
    for row in order:
        cut, frames = Cut(row.frames_per_chunk), row.shape[2]
        strategy, chunking = cut.strategy(frames), cut.chunking(frames)
        key = (row.family, str(strategy))
        if seen.get(key, 0) >= TRUSTED_OBSERVATIONS:
            known = residuals.estimate(row.family, "float32", strategy, row.live_bytes, chunking)
            upper = known.upper_bytes
            ratios.append(upper / row.needed_bytes)
            if upper < row.needed_bytes:
                missed.append({"decode": key, "upper_over_needed": round(ratios[-1], 3)})
        seen[key] = seen.get(key, 0) + 1
        measured = MeasuredPeak(row.allocated_bytes, row.fragmentation_bytes, row.outside_bytes)
        residuals.observe(
            row.family,
            "float32",
            strategy,
            live_bytes=row.live_bytes,
            measured=measured,
            chunking=chunking,
        )
    return {
        "cases": len(ratios),
        "covered": round(1 - len(missed) / len(ratios), 4),
        "median_upper_over_needed": round(median(ratios), 3),
        "missed": missed,
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The tables, with how they were made."""
    text = "Measured by `tests/bench/prediction.py`, CPU, float32 unless said otherwise.\n"
    if "live" in found:
        text += "\n## Live bytes: predicted against counted in a real run\n\n"
        text += "| configuration | batched | chunk 1 | chunk 2 | chunk 4 |\n|---|---|---|---|---|\n"
        for name in dict.fromkeys(row["config"] for row in found["live"]):
            cells = [_worst(found["live"], name, index) for index in range(len(CHUNKS))]
            text += f"| {name} | {' | '.join(cells)} |\n"
        text += "\nWorst error over the shapes (latent frames, height, width) "
        text += f"{', '.join(str(tuple(sides)) for sides in found['shapes'])}.\n"
    if "comfyui" in found:
        text += "\n## One-call decodes in bfloat16: GiB above the weights\n\n"
        text += "| case | traced at the shape | ours | error | ComfyUI | error |\n|---|---|---|---|---|---|\n"
        for row in found["comfyui"]:
            traced, ours, theirs = (row[f"{who}_bytes"] / GIB for who in ("traced", "ours", "comfyui"))
            text += f"| {row['case']} | {traced:.2f} | {ours:.2f} | {row['our_error']:+.1%} "
            text += f"| {theirs:.2f} (2 x {row['formula']}) | {row['comfyui_error']:+.1%} |\n"
    if "coverage" in found:
        text += "\n## Resident-set peaks: the learned bound after five observations\n\n"
        text += "| order | cases | covered | median upper / needed |\n|---|---|---|---|\n"
        for index, row in enumerate(found["coverage"]):
            text += f"| {index} | {row['cases']} | {row['covered']:.1%} "
            text += f"| {row['median_upper_over_needed']:.2f} |\n"
        cases = sum(row["cases"] for row in found["coverage"])
        covered = sum(row["cases"] * row["covered"] for row in found["coverage"])
        text += f"\n{covered / cases:.1%} of all.\n"
    return text


def _worst(rows: list[dict[str, Any]], name: str, index: int) -> str:
    mine = [row for row in rows if row["config"] == name]
    cells = mine[index :: len(CHUNKS)]
    return f"{max((row['error'] for row in cells), key=abs):+.2%}"


def main() -> None:
    """Run the parts, merge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", nargs="*", default=["live", "comfyui", "coverage"])
    parser.add_argument("--quick", action="store_true", help="one shape; recordings as they are")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    document = options.out / "prediction-cpu.json"
    found = json.loads(document.read_text()) if document.exists() else {}
    if "live" in options.part:
        found["shapes"] = SHAPES[:1] if options.quick else SHAPES
        found["live"] = list(live(found["shapes"]))
    if "comfyui" in options.part:
        found["comfyui"] = list(comfyui())
    if "coverage" in options.part:
        if not options.quick:
            recordings.record(list(recordings.WIDER), 12, 2)
            recordings.record(list(recordings.WIDER), 5, 1, recordings.LARGE)
        rows = recordings.load() + recordings.load(recordings.LARGE)
        found["coverage"] = [coverage(rows, seed) for seed in range(10)]
    options.out.mkdir(parents=True, exist_ok=True)
    document.write_text(json.dumps(found, indent=1) + "\n")
    document.with_suffix(".md").write_text(as_markdown(found))


if __name__ == "__main__":
    main()
