"""The options of `framefit generate` for pictures of several frames: as files and fields of the request."""

import json
from pathlib import Path
from typing import Any

import typer

from app.fields.keyframes import MOST_KEYFRAMES, PICTURES

NO_IMAGE = Path("-")


def images_of(
    image: Path, last_image: Path | None, keyframes: list[str], continue_from: str | None
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Return the files of the request by field name, and its fields. Raises `typer.BadParameter`."""
    if (image == NO_IMAGE) != (continue_from is not None):
        raise typer.BadParameter("write - for the image with --continue-from, and only with it")
    if image != NO_IMAGE and not image.is_file():
        fault = "is a directory" if image.is_dir() else "does not exist"
        raise typer.BadParameter(f"file {str(image)!r} {fault}.", param_hint="'image'")
    images = {"image": image, "last_image": last_image}
    given = [_keyframe(text) for text in keyframes]
    if len(given) > MOST_KEYFRAMES:
        raise typer.BadParameter(f"--keyframe may be given {MOST_KEYFRAMES} times, not {len(given)}")
    images |= {name: path for name, (path, _) in zip(PICTURES, given, strict=False)}
    fields = {
        "continue_from": continue_from,
        "keyframes": json.dumps([keyframe for _, keyframe in given]) if given else None,
    }
    return {name: path for name, path in images.items() if path not in (None, NO_IMAGE)}, fields


def _keyframe(text: str) -> tuple[Path, dict[str, Any]]:
    name, at, place = text.rpartition("@")
    frame, colon, strength = place.partition(":")
    try:
        keyframe = {"frame": int(frame), **({"strength": float(strength)} if colon else {})}
    except ValueError:
        at = ""
    if not at:
        raise typer.BadParameter(f"{text!r}: write FILE@FRAME or FILE@FRAME:STRENGTH, such as end.jpg@-1:0.8")
    if not Path(name).is_file():
        raise typer.BadParameter(f"--keyframe: file {name!r} does not exist")
    return Path(name), keyframe
