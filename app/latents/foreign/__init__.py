"""Reads latents that other programs wrote, and says how they are scaled. One file a format, one line a format
in `FORMATS`.

Files are untrusted: sizes are checked against headers before anything is read, and no code in them runs.
"""

from collections.abc import Iterator
from pathlib import Path

from adaptive.pipelines import recorded_call
from app.latents import latents_file
from app.latents.foreign import comfyui, musubi, plain, torch_save
from app.latents.foreign.found import FileFormat, Found
from app.latents.foreign.rejected import LatentsRejected
from app.latents.foreign.safetensors_header import read_header

FORMATS: tuple[FileFormat, ...] = (
    comfyui.FORMAT,
    musubi.FORMAT,
    plain.FORMAT,
    torch_save.FORMAT,
    torch_save.OLD,
)
_OWN = {recorded_call.FORMAT, latents_file.FORMAT}

__all__ = ["FORMATS", "Found", "LatentsRejected", "read"]


def read(path: Path) -> Found | None:
    """The latents in a file that Framefit did not write; None for a file of Framefit, or of no known kind.

    Raises `LatentsRejected` for a file that is damaged, too large or has no latents.
    """
    with path.open("rb") as file:
        start = file.read(9)
    header = read_header(path) if start[8:9] == b"{" else None
    if header is not None and header.metadata.get("format") in _OWN:
        return None
    for form in _candidates(start, has_header=header is not None):
        found = form.read(path, header)
        if found is not None:
            return found
    return None


def _candidates(start: bytes, *, has_header: bool) -> Iterator[FileFormat]:
    for form in FORMATS:
        if has_header if form.start is None else start.startswith(form.start):
            yield form
