"""What commands write: files, whose place is looked at before the work begins, and results as JSON."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from app.media.formats.table import FORMATS


def video_format(path: Path) -> str:
    """Return the format that the file's name asks for; mp4 if it has no ending.

    Raises `typer.BadParameter` for an ending of another format.
    """
    name = path.name.lower()
    for form in ("mp4", *FORMATS):
        if name.endswith(f".{form}"):
            return form
    if not path.suffix:
        return "mp4"
    known = ", ".join(f".{form}" for form in ("mp4", *FORMATS))
    raise _refused(f"{path.name} ends like no format that can be written: use one of {known}")


def check_output_file(path: Path) -> None:
    """Raise `typer.BadParameter` if a file at `path` cannot be written."""
    if path.is_dir():
        raise _refused(f"{path} is a folder: name a file in it, such as {path / 'out.mp4'}")
    _check_parent(path)
    if path.exists() and not os.access(path, os.W_OK, effective_ids=True):
        raise _refused(f"{path} may not be written to: choose another file, or change its mode")


def check_output_folder(path: Path) -> None:
    """Raise `typer.BadParameter` if `path` is no folder and none can be made there."""
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise _refused(f"{there} is no folder, so that {path} cannot be made: choose another folder")
    _check_writable(there)


def print_json(document: Mapping[str, Any]) -> None:
    """Print a result for programs to standard output."""
    typer.echo(json.dumps(document, indent=2))


def _check_parent(path: Path) -> None:
    if path.parent.exists() and not path.parent.is_dir():
        raise _refused(f"{path.parent} is no folder: choose another place for {path.name}")
    if not path.parent.is_dir():
        raise _refused(f"there is no folder {path.parent}: make it first (mkdir -p {path.parent})")
    _check_writable(path.parent)


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise _refused(f"the folder {folder} may not be written to: choose another, or change its mode")


def _refused(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--out")
