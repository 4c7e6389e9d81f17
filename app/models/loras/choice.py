"""Checks the LoRAs of a request against the folder and the model, and notes which files they are."""

from collections.abc import Mapping

from app.config import Settings
from app.fields.loras import LoraChoice
from app.models.entries import ModelEntry
from app.models.loras.fitting import models_that_take, takes, transformers_of
from app.models.loras.folder import LoraFile, LoraFolder, UnusableLora


class LoraRefused(Exception):
    """A request's LoRA cannot be used. `code` and `data` are for programs."""

    def __init__(self, code: str, message: str, data: Mapping[str, object]) -> None:
        self.code = code
        self.data = dict(data)
        super().__init__(message)


def chosen_files(
    loras: tuple[LoraChoice, ...],
    entry: ModelEntry,
    folder: LoraFolder,
    models: Mapping[str, ModelEntry],
    settings: Settings,
) -> tuple[LoraChoice, ...]:
    """The LoRAs with the digests and sizes of their files. Raises `LoraRefused`."""
    return tuple(_with_file(lora, entry, folder, models, settings) for lora in loras)


def require_unchanged(loras: tuple[LoraChoice, ...], folder: LoraFolder) -> None:
    """Raise `LoraRefused` if a file is not the one that the job was accepted with."""
    for lora in loras:
        _same_file(lora, _found(lora, folder), folder)


def _with_file(
    lora: LoraChoice,
    entry: ModelEntry,
    folder: LoraFolder,
    models: Mapping[str, ModelEntry],
    settings: Settings,
) -> LoraChoice:
    file = _found(lora, folder)
    _check_component(lora, entry, settings)
    if takes(file, entry, settings) is False:
        others = models_that_take(file, models, settings)
        titles = ", ".join(architecture.title for architecture in file.adapter.targets)
        message = (
            f"LoRA {lora.name} is for {titles or 'other layers'}, not for model {entry.name}; "
            f"models that take it: {', '.join(others) or 'none here'}"
        )
        raise LoraRefused("lora_not_for_model", message, {**_field(lora), "models": others})
    digest = _same_file(lora, file, folder)
    return lora.model_copy(update={"sha256": digest, "size_bytes": file.size_bytes})


def _found(lora: LoraChoice, folder: LoraFolder) -> LoraFile:
    try:
        file = folder.find(lora.name)
    except UnusableLora as error:
        raise LoraRefused("unusable_lora", str(error), _field(lora)) from None
    if file is None:
        names = folder.names()
        known = f"available: {', '.join(names[:20])}" if names else "the folder of LoRAs is empty"
        message = f"there is no LoRA {lora.name!r}; {known}"
        raise LoraRefused("unknown_lora", message, {**_field(lora), "available": names})
    return file


def _same_file(lora: LoraChoice, file: LoraFile, folder: LoraFolder) -> str:
    try:
        digest = folder.sha256(file)
    except OSError as error:
        message = f"LoRA {lora.name} cannot be read: {error.strerror}"
        raise LoraRefused("unusable_lora", message, _field(lora)) from None
    if lora.sha256 not in (None, digest):
        message = (
            f"the file of LoRA {lora.name} is another than the job's: its SHA-256 is {digest}, not "
            f"{lora.sha256}; put the old file back, or ask without sha256"
        )
        data = {**_field(lora), "sha256": digest, "expected_sha256": lora.sha256}
        raise LoraRefused("lora_changed", message, data)
    return digest


def _check_component(lora: LoraChoice, entry: ModelEntry, settings: Settings) -> None:
    own = transformers_of(entry, settings)
    if own is None:
        return
    if not own:
        message = f"model {entry.name} has no transformer, and LoRAs change transformers only"
        raise LoraRefused("lora_not_for_model", message, {**_field(lora), "models": []})
    if lora.component is not None and lora.component not in own:
        message = f"model {entry.name} has no {lora.component}; it has {', '.join(own)}"
        raise LoraRefused("lora_not_for_model", message, {**_field(lora), "components": list(own)})


def _field(lora: LoraChoice) -> dict[str, object]:
    return {"field": "loras", "name": lora.name}
