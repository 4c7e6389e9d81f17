"""Opens any file of latents: a job's recorded decode, an encoded clip, or a file of another program."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from adaptive.pipelines.recorded_call import RecordedClip, load_clip
from app.latents import foreign, latents_file
from app.latents.foreign.layout import Given, ModelTraits, check_model, recorded_clip
from app.models.entries import ModelEntry

ChooseModel = Callable[[str | None], ModelEntry]


@dataclass(frozen=True, slots=True)
class LatentsSource:
    """A file of latents and the model that decodes it; `fps` is None if the file names no rate.

    `load(vae)` returns the decode calls, and a sentence about what was done to the latents of another
    program. It raises `ValueError` if they do not fit the VAE.
    """

    entry: ModelEntry
    fps: Fraction | None
    load: Callable[[Any], tuple[RecordedClip, str | None]]


def open_source(
    path: Path, model: str | None, choose: ChooseModel, given: Given, known: ModelTraits
) -> LatentsSource:
    """Open the file for the model of that name, or for its own. `choose` finds a model by name; None means
    the default one. Raises `ValueError` for a file that cannot be read, or not by this model.
    """
    found = foreign.read(path)
    if found is not None:
        entry = check_model(found, path.name, None if model is None else choose(model), known)
        load = partial(_load_foreign, found, path.name, entry, given, known)
        return LatentsSource(entry, None, load)
    info = latents_file.read_info(path)
    if info is not None:
        clip = partial(latents_file.load, path, info)
        return LatentsSource(choose(model or info.model), info.fps, lambda vae: (clip(vae), None))
    return LatentsSource(choose(model), None, lambda _vae: (load_clip(path), None))


def _load_foreign(
    found: foreign.Found, name: str, entry: ModelEntry, given: Given, known: ModelTraits, vae: Any
) -> tuple[RecordedClip, str | None]:
    return recorded_clip(found, name, entry, vae, given, known)
