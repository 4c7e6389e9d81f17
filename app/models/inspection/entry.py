"""Writes the entry of the models file that runs components from files, and appends it to that file."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from app.models.entries import BUILT_IN_MODELS, PARTS
from app.models.files.architectures.recognition import Part
from app.models.files.architectures.table import Published
from app.models.inspection.inspected import Inspected
from app.models.parts.part import open_part
from app.models.unavailable import ModelUnavailable

_DENOISERS = ("transformer", "unet")
_TWO_EXPERTS = "wan22-i2v-a14b"
# What an entry with parts says otherwise than the shipped entry of its model.
_REPLACED = ("source", "variant", "revision", "description", "quantize")


class NoEntry(Exception):
    """The files do not make a model together; the message says why."""


@dataclass(frozen=True, slots=True)
class EntryText:
    """An entry as TOML. `notes` say what the files leave open."""

    name: str
    toml: str
    notes: tuple[str, ...]


def entry_of(files: Sequence[Inspected], *, taken: Sequence[str] = ()) -> EntryText:
    """The entry that runs the files together, with a name that is not `taken`. Raises `NoEntry`."""
    found = [(_place(file.name), part) for file in files for part in file.parts]
    denoisers = [
        each for each in found if each[1].architecture and each[1].architecture.component in _DENOISERS
    ]
    if not denoisers:
        raise NoEntry("an entry needs a transformer: name its file, too")
    first = denoisers[0][1]
    assert first.architecture is not None
    model = next((each for each in first.architecture.models if each.base), None)
    if model is None:
        names = ", ".join(each.name for each in first.architecture.models)
        raise NoEntry(f"it makes videos from text alone, and Framefit makes them from an image: {names}")
    if not any(part.architecture and part.architecture.component in PARTS for _, part in found):
        raise NoEntry(f"an entry cannot name a file for the {first.architecture.component}: use {model.base}")
    _check_together(found, model)
    notes: list[str] = []
    parts = _placed(found, model, notes)
    if any(file.name.startswith(("http://", "https://")) for file in files):
        notes.append("The entry names files of this folder: download those of addresses into it first.")
    notes += _refusals(parts, [part for _, part in found], model)
    name = _name(model, first, taken)
    return EntryText(name, _toml(name, model, first, parts), tuple(notes))


def _place(name: str) -> str:
    """The file as an entry names it: an address by the name that the file has after a download."""
    if name.startswith(("http://", "https://")):
        name = unquote(urlsplit(name).path.rpartition("/")[2])
    return str(Path(name).absolute())


def _check_together(found: Sequence[tuple[str, Part]], model: Published) -> None:
    for name, part in found:
        assert part.architecture is not None
        if model.like not in part.architecture.likes:
            raise NoEntry(
                f"{name} holds the {part.architecture.component} {part.architecture.title}, which is not one "
                f"of {model.name}"
            )


def _placed(found: Sequence[tuple[str, Part]], model: Published, notes: list[str]) -> dict[str, str]:
    """The file of each component of the pipeline."""
    files: dict[str, list[str]] = {}
    for name, part in found:
        assert part.architecture is not None
        files.setdefault(part.architecture.component, []).append(name)
    if model.like == _TWO_EXPERTS:
        files |= _experts(files.pop("transformer"), notes)
    for component, names in list(files.items()):
        if len(names) > 1:
            raise NoEntry(f"{' and '.join(names)} both hold the {component}: name one")
        if component not in PARTS:
            notes.append(f"An entry names no file for the {component}: it is taken from the base.")
            del files[component]
    return {component: files[component][0] for component in PARTS if component in files}


def _refusals(parts: Mapping[str, str], found: Sequence[Part], model: Published) -> list[str]:
    """Why the loader will refuse files that are recognised, as far as their headers tell."""
    refused = []
    for component, name in parts.items():
        if Path(name).exists():  # else it is at an address
            try:
                open_part(component, Path(name), "bfloat16")
            except ModelUnavailable as error:
                refused.append(f"This entry cannot be loaded yet: {error}.")
    for part in found:
        known = part.architecture
        why = known and known.component in PARTS and known.refusal(part.layout, model.base or "")
        if known and why:
            refused.append(f"This entry cannot be loaded yet: {known.component} {known.title}: {why}.")
    return refused


def _experts(names: Sequence[str], notes: list[str]) -> dict[str, list[str]]:
    """Which files are the transformers for high and for low noise, whose keys are the same."""
    noises = [_noise(name) for name in names]
    if len(names) == 1:
        low = noises == ["low"]
        notes.append(
            "Wan 2.2 A14B has two transformers with the same keys, for high and for low noise. This file is "
            f"taken for {'low' if low else 'high'} noise{'' if noises[0] else ', which nothing in it says'}; "
            "the other is taken from the base."
        )
        return {"transformer_2" if low else "transformer": list(names)}
    one, two, *more = names
    if noises[0] == "low" or noises[1] == "high":
        one, two = two, one
    elif not any(noises):
        notes.append(
            "The transformers for high and low noise have the same keys, and the names of the files do not "
            "say which is which: the first is taken for high noise."
        )
    return {"transformer": [one, *more], "transformer_2": [two]}


def _noise(name: str) -> str | None:
    """Which of the two experts a file is, by its name."""
    found = re.findall(r"high|low", Path(name).name.lower().replace("flow", ""))
    return found[0] if len(set(found)) == 1 else None


def _name(model: Published, part: Part, taken: Sequence[str]) -> str:
    # Not the model's own name: the entry would change the shipped one.
    form = re.sub(r"[^a-z0-9]+", "-", part.form.lower()).strip("-")
    stem = f"{re.sub(r'[^a-z0-9]+', '-', model.name.lower().split(' (')[0]).strip('-')}-{form}"
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    return name


def _toml(name: str, model: Published, part: Part, parts: Mapping[str, str]) -> str:
    shipped = tomllib.loads(BUILT_IN_MODELS.read_text(encoding="utf-8"))["models"][model.like]
    description = f"{model.name.split(' (')[0]} with weights of your own ({part.form})."
    values: dict[str, Any] = {"description": description, "base": model.like, **parts}
    if shipped["source"] != model.base:  # the shipped entry's keys hold, but not its configurations
        values["base"] = model.base
        values |= {key: value for key, value in shipped.items() if key not in _REPLACED}
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"[models.{name}]"]
    lines += [f"{key} = {_value(value)}" for key, value in values.items() if key not in tables]
    for key, table in tables.items():
        lines += ["", f"[models.{name}.{key}]"]
        lines += [f"{inner} = {_value(value)}" for inner, value in table.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A string, number, truth value or list of strings as TOML, which writes them as JSON does."""
    return json.dumps(value, ensure_ascii=False)


def append_entry(path: Path, entry: EntryText) -> None:
    """Append the entry to the models file, which is made if there is none.

    Raises `NoEntry` if the file has an entry of that name or is no TOML, and `OSError`.
    """
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    after = f"{before.rstrip()}\n\n{entry.toml}" if before.strip() else entry.toml
    try:
        tomllib.loads(after)
    except tomllib.TOMLDecodeError as error:
        raise NoEntry(f"{path} would not be valid: {error}") from None
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(after, encoding="utf-8")
    fresh.replace(path)
