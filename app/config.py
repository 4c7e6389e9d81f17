"""Settings from FRAMEFIT_* environment variables. Knows no HTTP, SQL or torch.

They are read once at start and passed down. An invalid value stops the start with an error that names it. An
empty variable is an absent one, as Compose files pass them on. Longer than 300 lines, so that all settings
are in one file.
"""

import difflib
import importlib.util
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.fields.roles import parse_roles

if TYPE_CHECKING:
    from sqlalchemy import URL

PREFIX = "FRAMEFIT_"
GIB = 2**30
HASH_PREFIX = "sha256:"
# Settings that FRAMEFIT_<SETTING>_FILE may name a file of, such as a container's secret.
SECRET_SETTINGS = ("api_keys", "client_key", "database_password", "database_url", "webhook_secret")
# A path of plain segments; none begins with a dot, so that none is `..`, and none is empty, as in //host.
PATH_PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
# A name, all names below one, or any name.
HOST_NAME = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class ConfigError(Exception):
    """The configuration is invalid; the message names the variable or key and the fault."""


class Settings(BaseSettings):
    """The service's configuration. Each field is read from the variable FRAMEFIT_<FIELD>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names under which clients reach the service, comma-separated; * allows any name.",
    )
    root_path: str = Field(
        "",
        description="Path under which a proxy serves the service, such as /framefit, if it sends no header.",
    )
    data_dir: Path = Path("./data")
    database_url: str | None = Field(
        None, repr=False, description="SQLAlchemy URL. Default: an SQLite file in the data folder."
    )
    database_password: str | None = Field(
        None, repr=False, description="Password for the database of database_url, as it is: not encoded."
    )
    model: str | None = Field(None, description="Default model. Default: the first of the list.")
    models_file: Path | None = None
    loras_dir: Path | None = Field(
        None,
        description="Folder of LoRA files, which jobs name without .safetensors. Default: loras in the data "
        "folder.",
    )
    devices: str = Field("auto", description='"auto", "cpu", or a list such as "cuda:0,cuda:1" or GPU UUIDs.')
    roles: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="What the workers of devices do, such as cuda:0=denoise,cuda:1=decode. Default: both.",
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), repr=False, description="API keys or their hashes (framefit key new), comma-separated."
    )
    keys_file: Path | None = Field(None, description="File with hashes of API keys and a limit for each.")
    client_key: str | None = Field(None, repr=False, description="API key that `framefit generate` sends.")
    allow_public: bool = Field(
        False, description="Allow listening on a non-loopback address without API keys."
    )
    open_monitoring: bool = Field(
        True, description="Serve /metrics and /readyz to callers without an API key."
    )
    max_queued: int = Field(10_000, ge=1)
    max_queued_per_key: int | None = Field(None, ge=1)
    max_attempts: int = Field(3, ge=1)
    max_skips: int = Field(
        4, ge=0, description="How often a job may be skipped for one whose model is loaded."
    )
    priority_seconds: float = Field(600, gt=0, description="Waiting time that one step of priority is worth.")
    reserve_bytes: int = Field(GIB // 2, ge=0, description="Device memory that is never used.")
    allow_cpu: bool = Field(
        False, description="Decode on the CPU, slowly, if a video does not fit the GPU even after waiting."
    )
    calibrate_seconds: float = Field(
        3,
        ge=0,
        description="Time limit for measuring a model's decode speed on its first load; 0: no measurement.",
    )
    checkpoint_seconds: float = Field(
        20,
        ge=0,
        description="How often a denoise saves its steps, at most; 0: after every step.",
    )
    preempt_after_seconds: float = Field(
        30,
        ge=0,
        description="A job that would wait longer takes the device of one of lower priority, at its next "
        "step; 0: never.",
    )
    memory_wait_seconds: float = Field(
        60, ge=0, description="How long a decode waits for other programs to free memory."
    )
    lease_seconds: float = Field(30, gt=0)
    heartbeat_seconds: float = Field(5, gt=0)
    poll_seconds: float = Field(
        0.2, gt=0, description="Interval at which workers look for jobs and the API for events."
    )
    progress_timeout_seconds: float = Field(1800, gt=0)
    worker_silence_seconds: float = Field(
        60,
        ge=0,
        description="A worker process without a heartbeat for this long is killed and started again; ten "
        "times as long before its first one. 0: never.",
    )
    fit_grace_seconds: float = Field(
        120, ge=0, description="How long a queued job that no live device can hold waits before it fails."
    )
    drain_seconds: float = Field(60, ge=0)
    min_free_disk_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Work is refused while the data folder's disk has less free than this; 0: never.",
    )
    client_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of connections, body memory, threads, picture decoding, event streams and waiting "
        "requests that one client (API key, else address) may hold, and of the queue that one key may.",
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024)
    max_image_pixels: int = Field(64_000_000, ge=1)
    max_image_side: int = Field(16_384, ge=1)
    result_ttl_seconds: float | None = Field(
        None, gt=0, description="Results are deleted after this time. Default: never."
    )
    job_ttl_seconds: float | None = Field(
        None,
        gt=0,
        description="Ended jobs are removed, prompt and history too, after this time. Default: never.",
    )
    event_ttl_seconds: float = Field(
        30 * 24 * 3600.0,
        gt=0,
        description="How long the events of a job are kept after its end; counters keep what they counted.",
    )
    embed_metadata: bool = Field(
        True,
        description="Say in each video and frame how it was made: prompt, seed, model, decode. A request may "
        "switch it off for its own files.",
    )
    webhook_secret: str | None = Field(None, repr=False)
    webhook_allow_private: bool = False
    traces_endpoint: str | None = Field(
        None, description="OpenTelemetry collector that takes OTLP over HTTP, such as http://127.0.0.1:4318."
    )
    hf_token_file: Path | None = Field(
        None, description="File with the access token of the Hugging Face hub, in place of HF_TOKEN."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @field_validator("root_path")
    @classmethod
    def _plain_path(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not PATH_PREFIX.fullmatch(path):
            raise ValueError("a path must begin with / and consist of letters, digits, '.', '_', '~' and '-'")
        return path

    @field_validator("traces_endpoint")
    @classmethod
    def _reachable_by_http(cls, endpoint: str | None) -> str | None:
        if not endpoint:  # Compose passes an unset variable on as an empty one
            return None
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError("name the collector's address for OTLP over HTTP, such as http://127.0.0.1:4318")
        if importlib.util.find_spec("opentelemetry.exporter") is None:
            raise ValueError("traces need the extra otel: pip install 'framefit[otel]'")
        return endpoint

    @field_validator("webhook_secret")
    @classmethod
    def _no_empty_secret(cls, secret: str | None) -> str | None:
        # Compose passes an unset variable on as an empty one. Messages signed with it would prove nothing.
        return secret if secret and secret.strip() else None

    @field_validator("allowed_hosts", "api_keys", "roles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not HOST_NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no name of a host: give names such as gpu-box.lan or *.example.org "
                    "without scheme and port, or * to allow any name"
                )
        return names

    @field_validator("roles")
    @classmethod
    def _roles_of_devices(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        parse_roles(entries)
        return entries

    @field_validator("api_keys")
    @classmethod
    def _long_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            if key.startswith(HASH_PREFIX) and not re.fullmatch(r"sha256:[0-9a-f]{64}", key):
                raise ValueError("a hash must be sha256: followed by 64 digits of 0-9a-f")
            if len(key) < 16:
                raise ValueError("every key must have at least 16 characters: make one with framefit key new")
        return keys

    @model_validator(mode="after")
    def _public_only_with_keys(self) -> "Settings":
        if not (self.is_loopback or self.api_keys or self.keys_file or self.allow_public):
            raise ValueError(
                f"{PREFIX}HOST {self.host} can be reached from other machines: set {PREFIX}API_KEYS or "
                f"{PREFIX}KEYS_FILE, or {PREFIX}ALLOW_PUBLIC=true to serve without keys"
            )
        return self

    @model_validator(mode="after")
    def _password_needs_url(self) -> "Settings":
        if self.database_password is not None and self.database_url is None:
            raise ValueError(f"{PREFIX}DATABASE_PASSWORD is set without {PREFIX}DATABASE_URL")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def resolved_database_url(self) -> "URL":
        """SQLAlchemy's URL of the database; by default that of an SQLite file in the data folder.

        A path is never pasted into a URL's text, in which `?`, `%` and others have a meaning. Raises
        `ConfigError` for a `database_url` that is no URL; the message shows no part of it.
        """
        from sqlalchemy import URL, make_url
        from sqlalchemy.exc import ArgumentError

        if self.database_url is None:
            return URL.create("sqlite", database=str((self.data_dir / "framefit.sqlite3").absolute()))
        try:
            url = make_url(self.database_url)
        except (ArgumentError, ValueError):
            url = None
        if url is None or "@" in (url.host or ""):
            raise ConfigError(
                f"{PREFIX}DATABASE_URL is not a SQLAlchemy URL such as postgresql://user@host/name: "
                "percent-encode special characters of the password (%40 for @), or give it in "
                f"{PREFIX}DATABASE_PASSWORD as it is"
            )
        return url if self.database_password is None else url.set(password=self.database_password)

    @property
    def jobs_dir(self) -> Path:
        """Folder of the jobs' latents and videos, with one folder for each job."""
        return self.data_dir / "jobs"

    @property
    def models_dir(self) -> Path:
        """Folder of built-in and converted models, with one folder for each model."""
        return self.data_dir / "models"

    @property
    def lora_folder(self) -> Path:
        """Folder of the LoRA files that jobs may name."""
        return self.data_dir / "loras" if self.loras_dir is None else self.loras_dir

    @property
    def profiles_dir(self) -> Path:
        """Folder of the stored memory profiles."""
        return self.data_dir / "profiles"


def load_settings(**overrides: Any) -> Settings:
    """Return the settings of the environment, with keyword overrides.

    Raises `ConfigError`, which names each invalid or unknown variable.
    """
    known = setting_variables()
    unknown = sorted(
        name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known
    )
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{unknown[0]}: there is no such setting{hint}")
    secrets = _read_secrets({name.upper(): value for name, value in os.environ.items() if value})
    try:
        settings = Settings(**{**secrets, **overrides})
    except ValidationError as error:
        lines = (": ".join((*_variable(item["loc"]), item["msg"])) for item in error.errors())
        raise ConfigError("; ".join(lines)) from None
    if settings.hf_token_file is not None:
        _read_secret(f"{PREFIX}HF_TOKEN_FILE", settings.hf_token_file)
        os.environ["HF_TOKEN_PATH"] = str(settings.hf_token_file.absolute())  # for huggingface_hub
    return settings


def setting_variables() -> set[str]:
    """Return the name of every variable that is read."""
    files = {f"{PREFIX}{name.upper()}_FILE" for name in SECRET_SETTINGS}
    return {PREFIX + name.upper() for name in Settings.model_fields} | files


def _read_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the settings whose values are in files."""
    found = {}
    for name in SECRET_SETTINGS:
        variable = PREFIX + name.upper()
        path = variables.get(f"{variable}_FILE")
        if path is None:
            continue
        if variable in variables:
            raise ConfigError(f"{variable} and {variable}_FILE are both set: leave one out")
        text = _read_secret(f"{variable}_FILE", Path(path))
        found[name] = ",".join(text.split("\n")) if name == "api_keys" else text
    return found


def _read_secret(variable: str, path: Path) -> str:
    """Return a file's text without the end of its last line. Raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ConfigError(f"{variable}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{variable}: {path} is no UTF-8 text") from None
    if not text.strip():
        raise ConfigError(f"{variable}: {path} is empty")
    return text


def _variable(location: tuple[int | str, ...]) -> tuple[str, ...]:
    return (PREFIX + str(location[0]).upper(),) if location else ()
