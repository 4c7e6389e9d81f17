"""Settings from FRAMEFIT_* variables, and the model list from models.toml. Knows no HTTP, no SQL, no torch.

Both are read once, in `main()` or `create_app(settings)`, and passed down. A bad value stops the start and is
named.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "FRAMEFIT_"
GIB = 2**30
HASH_PREFIX = "sha256:"
BUILT_IN_MODELS = Path(__file__).with_name("models.toml")


class ConfigError(Exception):
    """The configuration cannot be used; the message names the variable or key and what is wrong with it."""


class Settings(BaseSettings):
    """The service's configuration; each field is the variable FRAMEFIT_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    data_dir: Path = Path("./data")
    database_url: str | None = Field(
        None, description="SQLAlchemy URL; an SQLite file in the data folder by default."
    )
    model: str | None = Field(None, description="Default model; the first of the list by default.")
    models_file: Path | None = None
    devices: str = Field("auto", description='"auto", "cpu", or a list such as "cuda:0,cuda:1" or GPU UUIDs.')
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), repr=False, description="Keys or their hashes (framefit key new), separated by commas."
    )
    keys_file: Path | None = Field(None, description="Hashes of keys, each with its own limits.")
    client_key: str | None = Field(None, repr=False, description="What `framefit generate` calls with.")
    allow_public: bool = Field(False, description="Allow a non-loopback host without API keys.")
    max_queued: int = Field(10_000, ge=1)
    max_queued_per_key: int | None = Field(None, ge=1)
    max_attempts: int = Field(3, ge=1)
    max_skips: int = Field(
        4, ge=0, description="How often a job may be passed over for one whose model is loaded."
    )
    priority_seconds: float = Field(600, gt=0, description="How much waiting one step of priority is worth.")
    reserve_bytes: int = Field(GIB // 2, ge=0, description="Device memory that is left alone.")
    allow_cpu: bool = Field(
        False, description="Decode on the CPU, slowly, what the GPU cannot hold even after waiting."
    )
    calibrate_seconds: float = Field(
        3,
        ge=0,
        description="Longest that timing a model's decode may take when it is first loaded; 0: never.",
    )
    memory_wait_seconds: float = Field(
        60, ge=0, description="How long a decode waits for a neighbour's memory."
    )
    lease_seconds: float = Field(30, gt=0)
    heartbeat_seconds: float = Field(5, gt=0)
    poll_seconds: float = Field(
        0.2, gt=0, description="How often workers look for jobs and the API for events."
    )
    progress_timeout_seconds: float = Field(1800, gt=0)
    fit_grace_seconds: float = Field(
        120, ge=0, description="How long a queued job that no live device can hold waits for one that can."
    )
    drain_seconds: float = Field(60, ge=0)
    max_body_bytes: int = Field(32 * 2**20, ge=1024)
    max_image_pixels: int = Field(64_000_000, ge=1)
    max_image_side: int = Field(16_384, ge=1)
    result_ttl_seconds: float | None = Field(
        None, gt=0, description="Results are deleted after this; never by default."
    )
    webhook_secret: str | None = Field(None, repr=False)
    webhook_allow_private: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(key.strip() for key in value.split(",") if key.strip())
        return value

    @field_validator("api_keys")
    @classmethod
    def _long_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            if key.startswith(HASH_PREFIX) and not re.fullmatch(r"sha256:[0-9a-f]{64}", key):
                raise ValueError("a hash is written sha256: and 64 digits of 0-9a-f")
            if len(key) < 16:
                raise ValueError("every key needs at least 16 characters")
        return keys

    @model_validator(mode="after")
    def _public_only_with_keys(self) -> "Settings":
        if not (self.is_loopback or self.api_keys or self.keys_file or self.allow_public):
            raise ValueError(
                f"{PREFIX}HOST {self.host} can be reached from outside: set {PREFIX}API_KEYS or "
                f"{PREFIX}KEYS_FILE, or {PREFIX}ALLOW_PUBLIC=true if that is meant"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def resolved_database_url(self) -> str:
        """The database URL, with the SQLite file in the data folder as the default."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'framefit.sqlite3').absolute()}"

    @property
    def jobs_dir(self) -> Path:
        """Folder of the jobs' latents and videos, one folder a job."""
        return self.data_dir / "jobs"

    @property
    def models_dir(self) -> Path:
        """Folder of built-in and converted models, one folder a model."""
        return self.data_dir / "models"

    @property
    def profiles_dir(self) -> Path:
        """Folder of the stored memory profiles."""
        return self.data_dir / "profiles"


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with keyword overrides; `ConfigError` names each bad or unknown
    variable.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(
        name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known
    )
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{unknown[0]}: no such setting{hint}")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = (": ".join((*_variable(item["loc"]), item["msg"])) for item in error.errors())
        raise ConfigError("; ".join(lines)) from None


def _variable(location: tuple[int | str, ...]) -> tuple[str, ...]:
    return (PREFIX + str(location[0]).upper(),) if location else ()


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelDefaults(_Entry):
    """What a request for the model gets where it says nothing."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)
    num_frames: int = Field(ge=1)
    fps: int = Field(ge=1)
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=0)
    fs: int | None = Field(None, ge=1)


class ModelLimits(_Entry):
    """What a request for the model may ask for at most. `max_pixels` is width times height."""

    max_pixels: int = Field(ge=1)
    max_frames: int = Field(ge=1)
    max_steps: int = Field(ge=1)


class ModelEntry(_Entry):
    """One model the service offers: where its weights are, and which requests it can take.

    `size_multiple` is in pixels. A clip has `frame_step * k` frames, plus one where `first_frame_alone`;
    `frame_step` is the VAE's `temporal_ratio` unless the pipeline asks for more.
    """

    name: str
    pipeline: str
    source: str = Field(description="builtin:NAME, a local folder or checkpoint file, or a hub id.")
    resolution: int | None = Field(
        None, description="Which model it is, of those that are published as one checkpoint file each."
    )
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    placement: Literal["auto", "resident", "drop_text_encoder", "model_offload", "group_offload"] = "auto"
    quantize: Literal["int8"] | None = Field(
        None, description="How a transformer may be rounded where it does not fit and a job allows it."
    )
    vae_class: str
    size_multiple: int = Field(ge=1)
    temporal_ratio: int = Field(ge=1)
    frame_step: int | None = Field(None, ge=1)
    first_frame_alone: bool
    shapes: tuple[Annotated[str, Field(pattern=r"^\d+x\d+x\d+$")], ...] = Field(
        (), description="WIDTHxHEIGHTxFRAMES, where it can make no others; empty: all that the rules allow."
    )
    uses_prompt: bool = True
    defaults: ModelDefaults
    limits: ModelLimits
    inputs: frozenset[Literal["last_image", "loop", "fs"]] = Field(
        frozenset(), description="What a request may give beside an image and a prompt."
    )
    call: dict[str, int | float | str | bool] = Field(
        default_factory=dict, description="Arguments that the pipeline is always called with."
    )
    description: str = ""
    notice: str | None = None

    @property
    def is_builtin(self) -> bool:
        """Whether the weights are made by Framefit itself."""
        return self.source.startswith("builtin:")

    @property
    def frames_step(self) -> int:
        """Between one legal frame count and the next."""
        return self.frame_step or self.temporal_ratio

    @property
    def frame_rule(self) -> str:
        """The legal frame counts, as people write them: `8k+1`."""
        return f"{self.frames_step}k{'+1' if self.first_frame_alone else ''}"

    def allows_frames(self, num_frames: int) -> bool:
        """Whether the model can make a clip of that many frames."""
        return num_frames >= 1 and (num_frames - self.first_frame_alone) % self.frames_step == 0

    def allows_shape(self, width: int, height: int, num_frames: int) -> bool:
        """Whether the model can make pictures of that size for that long, where it makes only some shapes."""
        return not self.shapes or f"{width}x{height}x{num_frames}" in self.shapes


def load_models(settings: Settings) -> dict[str, ModelEntry]:
    """The built-in models merged with the user's file, default model first; `ConfigError` on anything not
    understood.
    """
    tables = _read_tables(BUILT_IN_MODELS)
    if settings.models_file is not None:
        for name, table in _read_tables(settings.models_file).items():
            tables[name] = _merged(tables.get(name, {}), table)
    models = {name: _entry(name, table) for name, table in tables.items()}
    if settings.model is None:
        return models
    if settings.model not in models:
        raise ConfigError(f"{PREFIX}MODEL: no model {settings.model!r}; there are {', '.join(models)}")
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
            f"{path}: only [models.NAME] tables are known, found {', '.join(document) or 'other values'}"
        )
    return models


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both_tables else value
    return merged


def _entry(name: str, table: Mapping[str, Any]) -> ModelEntry:
    try:
        entry = ModelEntry(name=name, **table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(("models", name, *map(str, first["loc"])))
        raise ConfigError(f"{key}: {first['msg']}") from None
    except TypeError as error:
        raise ConfigError(f"models.{name}: {error}") from None
    given = entry.defaults
    if given.width % entry.size_multiple or given.height % entry.size_multiple:
        raise ConfigError(f"models.{name}.defaults: sizes must be multiples of {entry.size_multiple}")
    if not entry.allows_frames(given.num_frames):
        raise ConfigError(
            f"models.{name}.defaults.num_frames: must be {entry.frame_rule}, got {given.num_frames}"
        )
    if entry.quantize and entry.dtype != "bfloat16":
        raise ConfigError(f"models.{name}.quantize: int8 needs dtype bfloat16, not {entry.dtype}")
    if not entry.allows_shape(given.width, given.height, given.num_frames):
        raise ConfigError(f"models.{name}.defaults: must be one of {', '.join(entry.shapes)}")
    return entry
