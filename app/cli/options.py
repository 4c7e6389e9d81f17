"""Options that several commands share, and the numbers people type into them."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from app.config import PREFIX, ConfigError, Settings, load_settings
from app.models.entries import ModelEntry

SupervisorPid = Annotated[int | None, typer.Option(hidden=True)]
DataDir = Annotated[Path | None, typer.Option(help="Data folder; FRAMEFIT_DATA_DIR, or ./data.")]
MemoryBudget = Annotated[
    str | None, typer.Option("--memory-budget", "--budget", help="At most this much, such as 2GB.")
]

# The names of adaptive.types.Strategy, without importing it for a help text.
STRATEGIES = (
    "auto, batched, chunked, per_frame or tiled; with --approximate also approximate_chunked and "
    "approximate_tiled."
)

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def byte_count(text: str) -> int:
    """Bytes of "12GB", "512 MiB" or "1000"; memory is sold in powers of two, so GB and GiB mean the same
    here.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a memory size such as 12GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def settings_with(**overrides: object) -> Settings:
    """Settings in which options on the command line win; child processes inherit them as environment."""
    for name, value in overrides.items():
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(value)
    settings = load_settings()
    return settings.model_copy(update={"data_dir": settings.data_dir.absolute()})


def chosen_model(models: Mapping[str, ModelEntry], name: str | None) -> ModelEntry:
    """The model of that name, the default one where there is no name; `ConfigError` where it is not known."""
    entry = models.get(name or next(iter(models)))
    if entry is None:
        raise ConfigError(f"there is no model {name!r}; there are {', '.join(models)}")
    return entry
