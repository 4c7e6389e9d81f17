"""Reads the models that the service offers: the entries of models.toml, merged with the user's file.

An invalid entry stops the start; the error names its key. Must not import torch.

Longer than 300 lines: the keys of an entry, each with its check.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adaptive.pipelines.real_frames import needs_real_frames
from app.config import PREFIX, ConfigError, Settings
from app.fields.recipes import Recipe
from app.frame_rate import FrameRate
from app.pipelines.frames import FORMS, inputs_of_class

Dtype = Literal["float32", "float16", "bfloat16"]
BUILT_IN_MODELS = Path(__file__).with_name("models.toml")
# Components that an entry can take from a file or folder of its own.
PARTS = ("transformer", "transformer_2", "text_encoder", "vae", "image_encoder")
_PATH = Field(None, min_length=1, description="A file or folder with this component, in place of the base's.")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelDefaults(_Entry):
    """The values of fields that a request for the model leaves out."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)
    num_frames: int = Field(ge=1)
    fps: FrameRate
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=0)
    fs: int | None = Field(None, ge=1)


class ModelLimits(_Entry):
    """The largest values of a request for the model. `max_pixels` is width times height."""

    max_pixels: int = Field(ge=1)
    max_frames: int = Field(ge=1)
    max_steps: int = Field(ge=1)


class FormerVersion(_Entry):
    """A model before its VAE changed: its latents are decoded with that VAE, and it had other defaults."""

    latent_channels: int = Field(ge=1)
    source: str
    pipeline: str
    temporal_ratio: int = Field(ge=1)
    defaults: ModelDefaults


class ModelEntry(_Entry):
    """One model that the service offers: where its weights are and which requests it accepts.

    `size_multiple` is in pixels. A clip has `frame_step * k` frames, plus one if `first_frame_alone`;
    `frame_step` is the VAE's `temporal_ratio` unless the pipeline needs a multiple of it.
    """

    name: str
    pipeline: str
    source: str = Field(description="builtin:NAME, a local folder or checkpoint file, or a hub id.")
    resolution: int | None = Field(
        None, description="Resolution of a model that is published as one checkpoint file."
    )
    base: str | None = Field(
        None,
        description="An entry's name, a hub id or a folder, in place of `source`: what `transformer` and the "
        "like do not name is taken from there. An entry's name also gives the keys that are left out.",
    )
    transformer: str | None = _PATH
    transformer_2: str | None = _PATH
    text_encoder: str | None = _PATH
    vae: str | None = _PATH
    image_encoder: str | None = _PATH
    revision: str | None = None
    variant: str | None = None
    dtype: Dtype = "bfloat16"
    vae_dtype: Dtype | None = Field(
        None, description="Dtype of the VAE, for encoding and decoding, if it differs from `dtype`."
    )
    text_encoder_dtype: Dtype | None = Field(
        None, description="Dtype of the text encoders, if it differs from `dtype`."
    )
    placement: Literal["auto", "resident", "drop_text_encoder", "model_offload", "group_offload"] = "auto"
    quantize: Literal["int8"] | None = Field(
        None, description="How its transformer may be quantized if it does not fit and the job allows it."
    )
    vae_class: str
    size_multiple: int = Field(ge=1)
    temporal_ratio: int = Field(ge=1)
    frame_step: int | None = Field(None, ge=1)
    first_frame_alone: bool
    shapes: tuple[Annotated[str, Field(pattern=r"^\d+x\d+x\d+$")], ...] = Field(
        (),
        description="The only shapes it makes, as WIDTHxHEIGHTxFRAMES; empty: all that the rules allow.",
    )
    uses_prompt: bool = True
    decode_in_place: bool = Field(
        False,
        description="Whether its pipeline needs decoded frames inside its call: one that changes them does.",
    )
    defaults: ModelDefaults
    limits: ModelLimits
    inputs: frozenset[Literal["last_image", "keyframes", "loop", "fs"]] = Field(
        frozenset(),
        description="Inputs that a request may give in addition to an image and a prompt. Default: those of "
        "every model of the pipeline.",
    )
    requires: frozenset[Literal["last_image"]] = Field(
        frozenset(), description="Those of its inputs that a request must give."
    )
    call: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="Arguments of every call of the pipeline."
    )
    recipe: Recipe = Field(
        default_factory=Recipe, description="How it is sampled, and what a job may not change of that."
    )
    description: str = ""
    notice: str | None = None
    former: FormerVersion | None = Field(
        None, description="The version that made latents of another number of channels."
    )

    @property
    def is_builtin(self) -> bool:
        """Whether Framefit itself provides the weights."""
        return self.source.startswith("builtin:")

    @property
    def decode_dtype(self) -> Dtype:
        """The dtype of the VAE."""
        return self.vae_dtype or self.dtype

    @property
    def in_place_because(self) -> str | None:
        """What its pipeline does with decoded frames inside its call; None if it needs none there."""
        if self.decode_in_place:
            return needs_real_frames(self.pipeline) or "needs decoded frames, as its entry says"
        return needs_real_frames(self.pipeline)

    @property
    def not_resumable_because(self) -> str | None:
        """Why its jobs keep no latents, as a sentence's part; None if they keep them."""
        why = self.in_place_because
        return None if why is None else f"{self.pipeline} {why}, so it decodes within its call"

    @property
    def parts(self) -> dict[str, str]:
        """The files and folders of components that the entry names, by component."""
        named = {name: getattr(self, name) for name in PARTS}
        return {name: path for name, path in named.items() if path is not None}

    def dtype_of(self, component: str) -> Dtype:
        """The dtype in which a component of the pipeline computes."""
        if component == "vae":
            return self.decode_dtype
        if component.startswith("text_encoder"):
            return self.text_encoder_dtype or self.dtype
        return self.dtype

    @property
    def fixed(self) -> dict[str, Any]:
        """The request fields that a job cannot set, with the values that it gets, as JSON."""
        given = {**self.defaults.model_dump(), "negative_prompt": "", "loras": self.loras_json}
        return {name: given[name] for name in self.recipe.fixed}

    @property
    def loras_json(self) -> list[dict[str, Any]]:
        """The recipe's LoRAs as a request gives them."""
        return [each.model_dump(exclude_none=True) for each in self.recipe.loras]

    @property
    def frames_step(self) -> int:
        """The difference between one legal frame count and the next."""
        return self.frame_step or self.temporal_ratio

    @property
    def frame_rule(self) -> str:
        """The legal frame counts as a formula, for example `8k+1`."""
        return f"{self.frames_step}k{'+1' if self.first_frame_alone else ''}"

    def allows_frames(self, num_frames: int) -> bool:
        """Whether the model can make a clip of that many frames."""
        return num_frames >= 1 and (num_frames - self.first_frame_alone) % self.frames_step == 0

    def allows_shape(self, width: int, height: int, num_frames: int) -> bool:
        """Whether the model can make this shape. Only a model with `shapes` refuses any."""
        return not self.shapes or f"{width}x{height}x{num_frames}" in self.shapes


def load_models(settings: Settings) -> dict[str, ModelEntry]:
    """The built-in models merged with the user's file, the default model first.

    Raises `ConfigError` for a file that is not valid, with every fault of its entries, and for an unknown
    default model.
    """
    tables = _read_tables(BUILT_IN_MODELS)
    if settings.models_file is not None:
        for name, table in _read_tables(settings.models_file).items():
            if "base" in table and "source" in table:
                raise ConfigError(f"models.{name}: base takes the place of source: give one of them")
            tables[name] = _merged(tables.get(name, {}), table)
    models, faults = {}, []
    for name in tables:
        try:
            models[name] = _entry(name, _with_base(tables, name))
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("; ".join(faults))
    if settings.model is None:
        return models
    if settings.model not in models:
        raise ConfigError(f"{PREFIX}MODEL: no model {settings.model!r}; use one of {', '.join(models)}")
    return {settings.model: models[settings.model], **models}


def _read_tables(path: Path) -> dict[str, dict[str, Any]]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    models = document.pop("models", {})
    if (
        document
        or not isinstance(models, dict)
        or not all(isinstance(table, dict) for table in models.values())
    ):
        raise ConfigError(
            f"{path}: only [models.NAME] tables are allowed, found {', '.join(document) or 'other values'}"
        )
    return models


def _with_base(
    tables: Mapping[str, Mapping[str, Any]], name: str, inner: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The table of an entry, with what it leaves out from the entry that is its base.

    A base that no entry is called after, and that is no entry's source, is the model's source itself.
    """
    table = dict(tables[name])
    base = table.get("base")
    if not isinstance(base, str):  # none, or refused when the entry is read
        return table
    if name in inner or base == name:
        raise ConfigError(f"models.{name}.base: {base} leads back to {name}")
    table.pop("source", None)  # of an entry that this one overrides
    of_source = (each for each, other in tables.items() if other.get("source") == base and each != name)
    known = base if base in tables else next(of_source, None)
    if known is None:
        return {**table, "source": base}
    inherited = _with_base(tables, known, (*inner, name))
    if "transformer" in table or "transformer_2" in table:
        inherited.pop("quantize", None)  # of the base's own transformer
    return _merged(inherited, table)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both_tables else value
    return merged


def _entry(name: str, table: Mapping[str, Any]) -> ModelEntry:
    try:
        entry = ModelEntry(name=name, **{"inputs": inputs_of_class(str(table.get("pipeline"))), **table})
        sampled = {**entry.defaults.model_dump(), **entry.recipe.values}
        entry = entry.model_copy(update={"defaults": ModelDefaults.model_validate(sampled)})
    except ValidationError as error:
        raise ConfigError("; ".join(_told(name, each) for each in error.errors())) from None
    except TypeError as error:
        raise ConfigError(f"models.{name}: {error}") from None
    faults = list(_contradictions(entry))
    if faults:
        raise ConfigError("; ".join(f"models.{name}.{fault}" for fault in faults))
    return entry


def _told(name: str, fault: Mapping[str, Any]) -> str:
    return f"{'.'.join(('models', name, *map(str, fault['loc'])))}: {fault['msg']}"


def _contradictions(entry: ModelEntry) -> Iterator[str]:
    """What no field shows alone: each as the key's name in the entry and a sentence."""
    if entry.defaults.num_inference_steps > entry.limits.max_steps:
        yield f"defaults: {entry.defaults.num_inference_steps} steps are more than its limits.max_steps"
    given = entry.defaults
    if given.width % entry.size_multiple or given.height % entry.size_multiple:
        yield (
            f"defaults: width and height must be multiples of {entry.size_multiple}, "
            f"got {given.width}x{given.height}"
        )
    if not entry.allows_frames(given.num_frames):
        yield f"defaults.num_frames: must be {entry.frame_rule}, got {given.num_frames}"
    if entry.parts and entry.resolution is not None:
        yield f"{min(entry.parts)}: {entry.pipeline} is loaded whole, from its source alone"
    if "keyframes" in entry.inputs and entry.pipeline not in FORMS:
        yield f"inputs: {entry.pipeline} takes no keyframes"
    if entry.requires - entry.inputs:
        yield f"requires: {', '.join(sorted(entry.requires - entry.inputs))} is not among its inputs"
    if entry.quantize and (entry.transformer or entry.transformer_2):
        yield "quantize: a transformer from a file of its own stays as it is"
    if entry.quantize and entry.dtype != "bfloat16":
        yield f"quantize: int8 needs dtype bfloat16, not {entry.dtype}"
    if not entry.allows_shape(given.width, given.height, given.num_frames):
        yield f"defaults: must be one of {', '.join(entry.shapes)}"
