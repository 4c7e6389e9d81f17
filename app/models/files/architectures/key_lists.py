"""The names and shapes of the tensors of published models, by list and key layout.

`keys.json` holds them in short: `blocks.{0-39}.ffn.0.bias` stands for forty tensors of one shape. The file is
generated from diffusers' and transformers' classes (`tests/weight_keys.py`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path

PATH = Path(__file__).with_name("keys.json")
Shape = tuple[int, ...]
_NUMBER = re.compile(r"(?<![^.])(?:\d+|\{\d+-\d+\})(?![^.])")
_MOST_NUMBERS = 4
_RANGE = re.compile(r"\{(\d+)-(\d+)\}")


@cache
def key_lists() -> Mapping[str, Mapping[str, Mapping[str, Shape]]]:
    """For each list its layouts, and for each layout the shapes by name."""
    document = json.loads(PATH.read_text(encoding="utf-8"))
    return {
        name: {layout: unpacked(keys) for layout, keys in layouts.items()}
        for name, layouts in document.items()
    }


def packed(keys: Mapping[str, Shape]) -> dict[str, list[int]]:
    """The list in short: runs of numbers within names become one entry."""
    names = dict(keys)
    for place in range(_MOST_NUMBERS):
        names = _packed_at(place, names)
    return {key: list(shape) for key, shape in sorted(names.items())}


def _packed_at(place: int, names: Mapping[str, Shape]) -> dict[str, Shape]:
    """Replaces runs of the number at that place of the names, counted from the left."""
    groups: dict[tuple[str, str, Shape], list[int]] = {}
    short: dict[str, Shape] = {}
    for key, shape in names.items():
        found = list(_NUMBER.finditer(key))[place : place + 1]
        if found and found[0][0].isdigit():
            before, after = key[: found[0].start()], key[found[0].end() :]
            groups.setdefault((before, after, shape), []).append(int(found[0][0]))
        else:
            short[key] = shape
    for (before, after, shape), numbers in groups.items():
        for first, last in _runs(sorted(numbers)):
            short[f"{before}{first if first == last else f'{{{first}-{last}}}'}{after}"] = shape
    return short


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def unpacked(short: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """The reverse of `packed`."""
    keys: dict[str, Shape] = {}
    for key, shape in short.items():
        ranges = [range(int(first), int(last) + 1) for first, last in _RANGE.findall(key)]
        form = _RANGE.sub("{}", key)
        for numbers in product(*ranges):
            keys[form.format(*numbers)] = tuple(shape)
    return keys
