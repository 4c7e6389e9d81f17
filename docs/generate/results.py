"""Numbers from `tests/bench/results/` for pages: single figures, and tables.

A page writes a figure as the number followed by a comment with the figure's name:
`14.8<!-- figure: NAME -->`. A table stands between `<!-- table: NAME -->` and `<!-- /table -->`.
`python docs/generate` brings both up to date. Figures are defined in `figures.toml`; tables in `TABLES`, or
by the name of a Markdown file in the results folder.
"""

import json
import re
import statistics
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from markdown_text import table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "bench" / "results"
FIGURE = re.compile(r"(?P<value>[^\s|*(`]+)(?P<mark>\**<!-- figure: (?P<name>[^\s]+) -->)")
TABLE = re.compile(
    r"(?P<start><!-- table: (?P<name>[^\s]+) -->\n)(?P<body>.*?)(?P<end><!-- /table -->)", re.DOTALL
)
REDUCE: Mapping[str, Callable[[list[Any]], Any]] = {
    "min": min,
    "max": max,
    "sum": sum,
    "median": statistics.median,
    "mean": statistics.fmean,
    "count": len,
    "first": lambda values: values[0],
}


def filled(text: str) -> str:
    """The page with every figure and table as the results have them; `KeyError` for an unknown name."""
    text = FIGURE.sub(lambda match: figure(match["name"]) + match["mark"], text)
    return TABLE.sub(
        lambda match: match["start"] + "\n" + _table(match["name"]) + "\n\n" + match["end"], text
    )


def figure(name: str) -> str:
    """A figure as text.

    Its definition has `file`, `key` (a path of keys with dots), and optionally `rows` (the path of a list;
    `where` selects from it and `reduce` makes one value of several), `scale` and `format`.
    """
    definition = _definitions()[name]
    document = _json(definition["file"])
    if "rows" in definition or isinstance(document, list):
        rows = _at(document, definition["rows"]) if definition.get("rows") else document
        where = definition.get("where", {})
        values = [_at(row, definition["key"]) for row in rows if all(row[k] == v for k, v in where.items())]
        values = [value for value in values if value is not None]
        if len(values) != 1 and "reduce" not in definition:
            raise ValueError(f"figure {name}: {len(values)} rows match; say how to reduce them")
        value = REDUCE[definition.get("reduce", "first")](values)
    else:
        value = _at(document, definition["key"])
        if "reduce" in definition:
            value = REDUCE[definition["reduce"]](value)
    if "format" in definition:
        value = format(value * definition.get("scale", 1), definition["format"])
    return str(value)


def figure_names() -> list[str]:
    """Every figure that is defined."""
    return list(_definitions())


def _at(value: Any, path: str) -> Any:
    for key in filter(None, path.split(".")):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


@cache
def _definitions() -> Mapping[str, Any]:
    return tomllib.loads(Path(__file__).with_name("figures.toml").read_text(encoding="utf-8"))


@cache
def _json(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _table(name: str) -> str:
    if name.endswith(".md"):
        return _included(name)
    return "\n".join(TABLES[name]())


def _included(name: str) -> str:
    """A results file as it is, its headings one level down and its links from docs/."""
    lines = (RESULTS / name).read_text(encoding="utf-8").strip().splitlines()
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines)


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
    rows = {(row["family"], row["way"]): row for row in _json("decode-cpu.json")["rows"]}
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
    """The models Framefit offers, from the built-in models file."""
    path = next(iter(sorted((ROOT / "app").rglob("models.toml"))))
    models = tomllib.loads(path.read_text(encoding="utf-8"))["models"]
    cells = []
    for name, entry in models.items():
        given = entry["defaults"]
        shape = f"{given['width']}x{given['height']}, {given['num_frames']} frames"
        cells.append((f"`{name}`", entry["description"].rstrip("."), shape))
    return table(("model", "what it is", "default size"), cells)


TABLES: Mapping[str, Callable[[], list[str]]] = {
    "decode": _decode,
    "models": _models,
}
