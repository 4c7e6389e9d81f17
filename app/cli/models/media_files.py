"""The part of `framefit inspect` that says how a video or a picture was made, from its tags."""

import json
from pathlib import Path
from typing import Any

import typer

LONGEST = 1500


def is_media_file(name: str) -> bool:
    """Whether this is a video or a picture on this machine, and no file of weights."""
    from app.media.metadata.inspected import is_media

    try:
        return is_media(Path(name).expanduser())
    except (OSError, ValueError):
        return False  # whoever reads it as weights says what is wrong


def media_documents(names: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what the files are, and what is wrong with those that cannot be read."""
    from app.media.metadata.inspected import media_document

    found, faults = [], []
    for name in names:
        try:
            found.append({"file": name, **media_document(Path(name).expanduser())})
        except (OSError, ValueError) as error:
            reason = shown_line(f"{name}: it is damaged: {getattr(error, 'strerror', None) or error}")
            faults.append({"file": name, "reason": reason, "nearest": None})
    return found, faults


def show_media(document: dict[str, Any]) -> None:
    """Print one file for people. What it holds may be anything: each text is one line without codes."""
    typer.echo(f"{shown_line(document['file'])}\n  {'format':12} {_form(document)}")
    made = document["made"]
    if made is None:
        typer.echo(f"  {'made by':12} another program, or without metadata")
        for name in ("title", "comment"):
            if document[name]:
                typer.echo(f"  {name:12} {shown_line(document[name])}")
        return
    for name, value in made.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        typer.echo(f"  {shown_line(name)[:40]:12} {shown_line(text)}")


def shown_line(text: str) -> str:
    """The text on one line: it may hold anything, also codes that a terminal obeys."""
    shown = "".join(each if each.isprintable() else "?" for each in text[: LONGEST + 1])
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} ..."


def _form(document: dict[str, Any]) -> str:
    parts = [f"{document['format']}, {document['width']}x{document['height']}"]
    if document.get("frames"):
        parts.append(f"{document['frames']} frames")
    if document.get("fps"):
        parts.append(f"{document['fps']} a second")
    if document.get("seconds"):
        parts.append(f"{document['seconds']} s")
    if document.get("sound"):
        parts.append("with sound")
    return ", ".join(parts)
