"""Puts a note into a PNG file, as text chunks, and reads it. The pixels stay as they are."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from app.artifacts.local_folder import write_whole
from app.media.metadata.note import MOST_COMMENT_BYTES, Note

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_NAMES: Final = {"title": "Title", "comment": "Comment"}
_HEADER_END: Final = len(SIGNATURE) + 12 + 13  # the signature and IHDR, which is always first
_MOST_CHUNKS: Final = 100_000


def with_note(png: bytes, note: Note) -> bytes:
    """Return the PNG file with the note in it."""
    if not png.startswith(SIGNATURE):
        raise ValueError("not a PNG file")
    texts = b"".join(_text_chunk(_NAMES[name], text) for name, text in note.tags().items())
    return png[:_HEADER_END] + texts + png[_HEADER_END:]


def add_note(path: Path, note: Note) -> None:
    """Put the note into the file, atomically."""
    write_whole(path, with_note(path.read_bytes(), note))


def read_png(path: Path) -> tuple[int, int, Note]:
    """Return width, height and note of a PNG file. Raises `ValueError` and `OSError`."""
    with path.open("rb") as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise ValueError("it is no PNG file")
        size: tuple[int, int] | None = None
        found: dict[str, str] = {}
        for kind, content in _chunks(file):
            if kind == b"IHDR" and size is None and len(content) >= 8:
                size = struct.unpack(">II", content[:8])
            elif kind in (b"iTXt", b"tEXt"):
                name, text = _text_of(kind, content)
                found.setdefault(name.lower(), text)
    if size is None:
        raise ValueError("it has no header")
    return *size, Note(found.get("title", ""), found.get("comment", ""))


def _text_chunk(name: str, text: str) -> bytes:
    content = name.encode("latin-1") + b"\0\0\0\0\0" + text.encode()
    kind = b"iTXt"
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the chunks; of long ones, and of pixels, no content."""
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        length = int.from_bytes(head[:4], "big")
        wanted = head[4:] in (b"IHDR", b"iTXt", b"tEXt") and length <= MOST_COMMENT_BYTES
        content = file.read(length) if wanted else b""
        file.seek(4 if wanted else length + 4, 1)
        yield head[4:], content


def _text_of(kind: bytes, content: bytes) -> tuple[str, str]:
    """Return name and text. Compressed texts are left out: they may be of any size."""
    name, _, rest = content.partition(b"\0")
    if kind == b"tEXt":
        return name.decode("latin-1"), rest.decode("latin-1")
    if rest[:1] != b"\0":
        return name.decode("latin-1"), ""
    _language, _, rest = rest[2:].partition(b"\0")
    _translated, _, text = rest.partition(b"\0")
    return name.decode("latin-1"), text.decode("utf-8", "replace")
