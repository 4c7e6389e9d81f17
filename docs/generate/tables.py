"""Tables made from `tests/bench/results/` and the built-in models, by name."""

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from figures import ROOT, document
from markdown_text import one_line, table

# The rows of the short table: what they are called, their family, and the ways to show by their names in the
# results.
SHOWN = (
    ("LTX 0.9, 97 frames of 96x64", "ltx-0.9.0", ("diffusers batched", "diffusers framewise", 1, 2, 4)),
    ("LTX 0.9, 49 frames of 192x128", "ltx-0.9.0 at 192x128", ("diffusers framewise", 1, 2)),
    ("LTX-2, 49 frames", "ltx-2", ("diffusers framewise", 1, 2)),
    ("Wan 2.1, 9 frames", "wan-2.1", ("diffusers tiling", 1)),
    ("SVD, 8 frames", "svd", ("diffusers batched", "diffusers decode_chunk_size=4", 4, 1)),
    ("HunyuanVideo 1.0, 25 frames", "hunyuanvideo-1.0", ("diffusers framewise", 4, 1)),
)


def _decode() -> list[str]:
    """Framefit beside diffusers' own ways, some rows of `decode-cpu.json`."""
    rows = {(row["family"], row["way"]): row for row in document("decode-cpu.json")["rows"]}
    cells = []
    for title, family, ways in SHOWN:
        for number, way in enumerate(ways):
            name = f"framefit chunk {way}" if isinstance(way, int) else way
            row = rows[family, name]
            called = f"Framefit, chunks of {way}" if isinstance(way, int) else way
            cells.append(
                (
                    title if number == 0 else "",
                    called,
                    _error(row["relative_error"]),
                    f"{row['peak_live_bytes'] / 1e6:.1f}",
                    f"{row['time_to_batched']:.2f}",
                    f"{row['first_frames_at']:.0%}",
                )
            )
    head = ("video", "way", "relative error (max)", "peak live MB", "time / batched", "first frames after")
    return table(head, cells)


def _error(value: float) -> str:
    if value == 0:
        return "0"
    return f"**{value:.1f}**" if value > 0.01 else f"{value:.0e}".replace("e-0", "e-")


def _models() -> list[str]:
    """The models Framefit offers, and the smallest card that `cards.json` has a plan for."""
    cells = []
    for name, entry in _entries().items():
        given = entry["defaults"]
        plans = [plan["card_gb"] for plan in _plans(name) if plan["placement"]]
        rounded = [plan["card_gb"] for plan in _plans(name, "approximate, int8") if plan["placement"]]
        card = f"{min(plans)} GB" if plans else f"{min(rounded)} GB in int8"
        if entry["source"].startswith("builtin:"):
            card = "none"
        shape = f"{given['width']}x{given['height']}, {given['num_frames']} frames"
        cells.append((f"`{name}`", one_line(entry["description"]), shape, card))
    return table(("model", "what it is", "default size", "smallest card"), cells)


def _cards() -> list[str]:
    """How each model runs on each card: placement, chunks, and the most it takes."""
    sizes = sorted({plan["card_gb"] for plan in document("cards.json")["cards"]})
    cells = []
    for name in (name for name, entry in _entries().items() if not entry["source"].startswith("builtin:")):
        plans = {plan["card_gb"]: plan for plan in _plans(name)}
        cells.append((f"`{name}`", *(_plan(plans[size]) for size in sizes)))
    return table(("model", *(f"{size} GB" for size in sizes)), cells)


def _cards_int8() -> list[str]:
    """Where rounding weights to int8 changes the placement: before and after."""
    cells = []
    for plan in (each for name in _entries() for each in _plans(name, "approximate, int8")):
        if plan.get("int8"):
            plain = next(each for each in _plans(plan["model"]) if each["card_gb"] == plan["card_gb"])
            cells.append((f"`{plan['model']}`", f"{plan['card_gb']} GB", _plan(plain), _plan(plan)))
    return table(("model", "card", "as published", "in int8"), cells)


def _live() -> list[str]:
    """Live GiB of single decodes above the weights, by chunk size."""
    decodes = [each for each in document("cards.json")["decodes"] if "dynamicrafter" not in each["model"]]
    return _live_table(decodes)


def _live_dynamicrafter() -> list[str]:
    return _live_table(
        [each for each in document("cards.json")["decodes"] if "dynamicrafter" in each["model"]]
    )


def _live_table(decodes: Sequence[Mapping[str, Any]]) -> list[str]:
    sizes = sorted({int(size) for each in decodes for size in each["chunk_bytes"]}, reverse=True)
    cells = [
        (
            f"`{each['model']}`",
            "x".join(map(str, each["video"])),
            _gib(each["one_call_bytes"]),
            *(_gib(each["chunk_bytes"].get(str(size))) for size in sizes),
        )
        for each in decodes
    ]
    chunks = (f"chunks of {size}" for size in sizes)
    return table(("model", "frames x height x width", "one call", *chunks), cells)


def _gib(count: int | None) -> str:
    if count is None:
        return ""
    gib = count / 2**30
    return f"{gib:.1f}" if gib >= 1 else f"{gib:.2f}"


PLACEMENTS = {
    "resident": "all on the card",
    "drop_text_encoder": "text encoder dropped",
    "model_offload": "model offload",
    "group_offload": "group offload",
}


def _plan(plan: Mapping[str, Any]) -> str:
    """One cell: placement, way of decoding, peak; or why there is no plan."""
    if not plan["placement"]:
        needed = re.search(r"needs ([0-9,]+) bytes", plan["refusal"])
        where = "of host memory" if "host memory" in plan["refusal"] else "on the card"
        gib = math.ceil(int(needed[1].replace(",", "")) * 10 / 2**30) / 10 if needed else "more"
        return f"no: needs {gib} GiB {where}"
    way = {"batched": "batched", "per_frame": "per-frame", "tiled": "tiled"}.get(
        plan["strategy"], f"chunks of {plan['frames_per_chunk']}"
    )
    return f"{PLACEMENTS[plan['placement']]}<br>{way}<br>{_gib(plan['peak_bytes'])} GiB"


def _plans(model: str, asked: str = "plain") -> list[Mapping[str, Any]]:
    cards = document("cards.json")["cards"]
    return [plan for plan in cards if plan["model"] == model and plan["asked"] == asked]


def _entries() -> Mapping[str, Any]:
    path = next(iter(sorted((ROOT / "app").rglob("models.toml"))))
    models: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["models"]
    return models


TABLES: Mapping[str, Callable[[], list[str]]] = {
    "decode": _decode,
    "models": _models,
    "cards": _cards,
    "cards-int8": _cards_int8,
    "live": _live,
    "live-dynamicrafter": _live_dynamicrafter,
}
