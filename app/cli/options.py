"""Options that several commands share, and the parsing of their values."""

import os
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from app.config import PREFIX, ConfigError, Settings, load_settings
from app.frame_rate import frame_rate
from app.models.entries import ModelEntry

SupervisorPid = Annotated[int | None, typer.Option(hidden=True)]
DataDir = Annotated[Path | None, typer.Option(help="Data folder. Default: FRAMEFIT_DATA_DIR, else ./data.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
MemoryBudget = Annotated[
    str | None, typer.Option("--memory-budget", "--budget", help="Memory limit, such as 2GiB.")
]
Fit = Annotated[
    str,
    typer.Option(
        help="How another aspect ratio fills the video: cover cuts, contain adds bars, stretch distorts."
    ),
]
Gravity = Annotated[
    str,
    typer.Option(
        help="The part that cover keeps and the place that contain gives: center, north, northeast, east, "
        "southeast, south, southwest, west or northwest."
    ),
]

# The names of adaptive.types.Strategy; a help text is no reason to import it.
STRATEGIES = (
    "auto, batched, chunked, per_frame or tiled; with --approximate also approximate_chunked and "
    "approximate_tiled."
)

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def byte_count(text: str) -> int:
    """Return the bytes of a text such as "12GiB", "512 MB" or "1000". Raises `typer.BadParameter`.

    As in GNU's tools, GB is 10**9 bytes; GiB, and G alone, are 2**30.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?b?)\s*", text, re.IGNORECASE)
    if match is None or (match[3].lower().startswith("i") and not match[2]):
        raise typer.BadParameter(f"{text!r} is not a memory size: write one such as 12GiB or 12GB")
    base = 1000 if match[3].lower() == "b" else 1024
    return int(Fraction(match[1]) * base ** _POWERS[match[2].lower()])


def clip_rate(text: str) -> Fraction:
    """Return the frame rate of a text such as "24", "23.976" or "30000/1001". Raises `ValueError`."""
    try:
        return frame_rate(text, least=Fraction(1, 1000), most=Fraction(1000))
    except ValueError as error:
        raise ValueError(f"fps {error}") from None


def settings_with(**overrides: object) -> Settings:
    """Return the settings with options of the command line applied; child processes inherit them."""
    for name, value in overrides.items():
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(value)
    settings = load_settings()
    return settings.model_copy(update={"data_dir": settings.data_dir.absolute()})


def chosen_model(models: Mapping[str, ModelEntry], name: str | None) -> ModelEntry:
    """Return the model of that name, or the default model if `name` is None. Raises `ConfigError`."""
    entry = models.get(name or next(iter(models)))
    if entry is None:
        raise ConfigError(f"there is no model {name!r}; available models: {', '.join(models)}")
    return entry
