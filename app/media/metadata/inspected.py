"""Says what a file of a video or a picture is and how it was made, from its header. Foreign files are read,
too: nothing that they hold is believed to be short, valid or printable.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from app.frame_rate import rate_as_json
from app.media.metadata.note import Note, facts_in, note_in
from app.media.metadata.png_text import SIGNATURE, read_png

_EBML: Final = b"\x1aE\xdf\xa3"
_LONGEST: Final = 4000


def is_media(path: Path) -> bool:
    """Whether the file begins as an mp4, a WebM or a PNG file does. Raises `OSError`."""
    with path.open("rb") as file:
        begin = file.read(12)
    return begin.startswith((SIGNATURE, _EBML)) or begin[4:8] == b"ftyp"


def media_document(path: Path) -> dict[str, Any]:
    """What the file is, as JSON: `made` are our facts, `title` and `comment` those of another program.

    Raises `OSError` and `ValueError`, as all of PyAV.
    """
    with path.open("rb") as file:
        is_png = file.read(len(SIGNATURE)) == SIGNATURE
    if is_png:
        width, height, note = read_png(path)
        return {"format": "png", "width": width, "height": height, **_noted(note)}
    import av

    with av.open(str(path), metadata_errors="replace") as file:
        if not file.streams.video:
            raise ValueError("it has no pictures")
        video = file.streams.video[0]
        rate = Fraction(video.average_rate) if video.average_rate else None
        return {
            "format": "webm" if "webm" in file.format.name else "mp4",
            "width": video.width,
            "height": video.height,
            "frames": video.frames or None,
            "fps": None if rate is None else rate_as_json(rate),
            "seconds": round(file.duration / av.time_base, 3) if file.duration else None,
            "sound": bool(file.streams.audio),
            **_noted(note_in(dict(file.metadata))),
        }


def _noted(note: Note) -> dict[str, Any]:
    facts = facts_in(note)
    comment = None if facts is not None else note.comment[:_LONGEST] or None
    return {"made": facts, "title": note.title[:_LONGEST] or None, "comment": comment}
