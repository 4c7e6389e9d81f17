"""Single numbers from `tests/bench/results/`, by the names that `figures.toml` gives them."""

import json
import statistics
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "bench" / "results"
REDUCE: Mapping[str, Callable[[list[Any]], Any]] = {
    "min": min,
    "max": max,
    "sum": sum,
    "median": statistics.median,
    "mean": statistics.fmean,
    "count": len,
    "first": lambda values: values[0],
}


def figure(name: str) -> str:
    """A figure as text.

    Its definition has `file`, `key` (a path of keys with dots), and optionally `rows` (the path of a list;
    `where` selects from it and `reduce` makes one value of several), `scale` and `format`.
    """
    definition = _definitions()[name]
    found = document(definition["file"])
    if "rows" in definition or isinstance(found, list):
        rows = _at(found, definition["rows"]) if definition.get("rows") else found
        where = definition.get("where", {})
        values = [_at(row, definition["key"]) for row in rows if all(row[k] == v for k, v in where.items())]
        values = [value for value in values if value is not None]
        if len(values) != 1 and "reduce" not in definition:
            raise ValueError(f"figure {name}: {len(values)} rows match; say how to reduce them")
        value = REDUCE[definition.get("reduce", "first")](values)
    else:
        value = _at(found, definition["key"])
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
def document(name: str) -> Any:
    """A results file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))
