"""Plans every configured model on cards of 8, 12, 16 and 24 GB: weight placement and decode plan, as
`framefit plan` computes them.

    python tests/bench/cards.py [--models ltx-video ...]

Nothing is downloaded or run: the figures follow from published configurations, stored memory profiles and
margins without learned costs, so they are the same on every machine. Each model is planned at its default
shape: plain, with `--approximate` and, if its entry may set `quantize = "int8"`, with both. A second table
has the traced live bytes of single decodes. Writes `results/cards.json` and `results/cards.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tests.bench.campaigns import commit  # noqa: E402

OUT = HERE / "results"
GIB = 2**30
CARDS_GB = (8, 12, 16, 24)
HOST_GB = 64
COMMAND = "python tests/bench/cards.py"
# Ways of asking: `exact_only`, and whether the entry says `quantize = "int8"`.
ASKED = {"plain": (True, False), "approximate": (False, False), "approximate, int8": (False, True)}
# Single decodes, whose live bytes the documentation names: model, then frames x height x width.
DECODES = (
    ("ltx-video", (121, 768, 1280)),
    ("ltx-2", (121, 768, 1280)),
    ("wan21-i2v-480p", (81, 480, 832)),
    ("dynamicrafter-256", (16, 256, 256)),
    ("dynamicrafter-512", (16, 320, 512)),
    ("dynamicrafter-1024", (16, 576, 1024)),
)
CHUNKS = (8, 4, 2, 1)


def planned(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each model, way of asking and card; a row without placement names what does not fit."""
    from app.config import Settings
    from app.models.entries import load_models
    from app.models.inspection.needs import CONTEXT_BYTES

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        models = load_models(settings)
        for name in names or models:
            for asked, (exact_only, quantized) in ASKED.items():
                entry = models[name]
                if quantized:
                    if entry.dtype != "bfloat16" or entry.is_builtin:
                        continue
                    entry = entry.model_copy(update={"quantize": "int8"})
                for card in CARDS_GB:
                    free_bytes = card * GIB - CONTEXT_BYTES
                    row = {"model": name, "asked": asked, "card_gb": card}
                    yield row | _row(settings, entry, free_bytes, exact_only=exact_only)


def _row(settings: Any, entry: Any, free_bytes: int, *, exact_only: bool) -> dict[str, Any]:
    from adaptive.types import VideoShape
    from app.models.forecast import Unfeasible, forecast

    given = entry.defaults
    video = VideoShape(given.num_frames, given.height, given.width)
    shown = {"video": [video.frames, video.height, video.width]}
    try:
        found = forecast(
            settings,
            entry,
            video,
            device_bytes=free_bytes,
            host_bytes=HOST_GB * GIB,
            exact_only=exact_only,
        )
    except Unfeasible as error:
        return {**shown, "placement": None, "refusal": str(error)}
    placement, decode = found["placement"], found["decode"]
    held_bytes = free_bytes - settings.reserve_bytes - decode["budget_bytes"]
    chosen = decode["strategy"], decode["frames_per_chunk"], decode["predicted_peak_bytes"]
    strips = next(
        rung["strips"]
        for rung in found["rungs"]
        if (rung["strategy"], rung["frames_per_chunk"], rung["upper_bytes"]) == chosen
    )
    return {
        **shown,
        "placement": placement["kind"],
        "group_offloaded": placement["group_offloaded"],
        "int8": placement["quantized"],
        "weights_while_decoding_bytes": held_bytes,
        "placement_peak_bytes": placement["device_bytes"],
        "host_bytes": placement["host_bytes"],
        "strategy": decode["strategy"],
        "frames_per_chunk": decode["frames_per_chunk"],
        "strips": strips,
        "decode_bytes": decode["predicted_peak_bytes"],
        "peak_bytes": max(placement["device_bytes"], held_bytes + decode["predicted_peak_bytes"]),
        "exact": placement["exact"] and decode["exact"],
    }


def traced() -> Iterator[dict[str, Any]]:
    """Live bytes above weights of single decodes, in one call and in chunks."""
    from adaptive.types import VideoShape
    from app.config import Settings
    from app.models.entries import load_models
    from app.models.profiles import load

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        models = load_models(settings)
        for name, sides in DECODES:
            profile = load(settings, models[name])
            if profile is None:
                raise SystemExit(f"{name}: no stored profile for the installed torch and diffusers")
            shape = profile.traits.latent_shape(VideoShape(*sides))
            live = {size: profile.live_bytes(shape, size) for size in CHUNKS}
            one_call = profile.live_bytes(shape, shape.frames)
            yield {
                "model": name,
                "video": list(sides),
                "dtype": profile.dtype,
                "latent_frames": shape.frames,
                "one_call_bytes": one_call,
                "chunk_bytes": {str(size): count for size, count in live.items()},
            }


def document(names: Sequence[str]) -> dict[str, Any]:
    """All figures, with what they depend on."""
    from app.models.profiles import library_versions

    return {
        "command": COMMAND,
        "commit": commit(),
        "versions": dict(library_versions()),
        "host_memory_gb": HOST_GB,
        "cards": list(planned(names)),
        "decodes": list(traced()),
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The tables, with how they were made."""
    head = (
        f"Computed by `{found['command']}` at {found['commit']}, for {found['host_memory_gb']} GB of host "
        "memory, with cold margins; not run on these cards. Placement peak: weights and activations of the "
        "largest stage, the decode in chunks of at most 4 latent frames. Peak: the same, or the weights that "
        "stay while decoding and the upper bound of the decode that is chosen, whichever is more. Rows of "
        "`--approximate` are left out where they are those of the plain plan.\n\n"
    )
    columns = (
        "model",
        "asked",
        "card",
        "weights",
        "placement peak GiB",
        "decode",
        "frames a chunk",
        "decode GiB",
        "peak GiB",
        "exact",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in _telling(found["cards"])]
    sizes = [f"chunks of {size}" for size in CHUNKS]
    lines += ["", "Live GiB of single decodes above weights, traced on meta tensors:", ""]
    lines += [f"| {' | '.join(('model', 'video', 'dtype', 'one call', *sizes))} |"]
    lines += ["|" + "---|" * (4 + len(sizes))]
    for row in found["decodes"]:
        live = [row["one_call_bytes"], *row["chunk_bytes"].values()]
        cells = [row["model"], _video(row["video"]), row["dtype"], *map(_gib, live)]
        lines.append(f"| {' | '.join(cells)} |")
    return head + "\n".join(lines) + "\n"


def _telling(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Plain rows, and those of another way of asking that differ from the way before."""
    before: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        known = before.get((row["model"], row["card_gb"]))
        if known is None or {**row, "asked": ""} != {**known, "asked": ""}:
            yield row
        before[row["model"], row["card_gb"]] = row


def _cells(row: dict[str, Any]) -> list[str]:
    start = [f"{row['model']} ({_video(row['video'])})", row["asked"], f"{row['card_gb']} GB"]
    if row["placement"] is None:
        return [*start, f"refused: {row['refusal']}", *[""] * 6]
    weights = row["placement"].replace("_", " ")
    if row["group_offloaded"]:
        weights += f" of {', '.join(row['group_offloaded'])}"
    if row["int8"]:
        weights += f", {', '.join(row['int8'])} in int8"
    strategy = row["strategy"] + (f" in {row['strips']} strips" if row["strips"] > 1 else "")
    size = str(row["frames_per_chunk"])
    peaks = _gib(row["placement_peak_bytes"]), _gib(row["decode_bytes"]), _gib(row["peak_bytes"])
    exact = "yes" if row["exact"] else "no"
    return [*start, weights, peaks[0], strategy, size, peaks[1], peaks[2], exact]


def _video(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f}" if size_bytes < GIB else f"{size_bytes / GIB:.1f}"


def main() -> None:
    """Compute, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], help="all without it; nothing is written with it")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("FRAMEFIT_")]:
        del os.environ[name]  # the figures are those of the defaults
    found = document(options.models)
    print(as_markdown(found))  # noqa: T201
    if not options.models:
        (OUT / "cards.json").write_text(json.dumps(found, indent=1) + "\n")
        (OUT / "cards.md").write_text(as_markdown(found))


if __name__ == "__main__":
    main()
