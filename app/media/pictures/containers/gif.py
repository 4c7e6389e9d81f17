"""GIF: keeps the first frame, which may cover a part of the canvas only."""

from typing import Final

from app.media.pictures.containers.contents import Contents
from app.media.pictures.image_structure import MAX_PARTS
from app.media.pictures.rejection import ImageRejected, too_complex

_EXTENSION, _IMAGE, _END = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL: Final = 0xF9
_LEAST_BYTES_A_PART: Final = 32  # encoders write blocks of 255 bytes


def contents(data: bytes) -> Contents:
    """As `take_apart`."""
    if len(data) < 13:
        raise ImageRejected("not_an_image", "the file is a GIF's signature and no more")
    walk = _Walk(data)
    canvas = walk.number(6), walk.number(8)
    walk.at = 13 + _palette_bytes(data[10])
    control = b""
    while True:
        kind = walk.byte()
        if kind == _EXTENSION:
            begin = walk.at - 1
            label = walk.byte()
            walk.skip_blocks()
            if label == _GRAPHIC_CONTROL and walk.at - begin == 8:
                control = data[begin : walk.at]
        elif kind == _IMAGE:
            break
        elif kind != 0:  # a stray terminator is passed over
            raise ImageRejected("not_an_image", "the GIF file has no picture")
    corner, size = (
        (walk.number(walk.at), walk.number(walk.at + 2)),
        (
            walk.number(walk.at + 4),
            walk.number(walk.at + 6),
        ),
    )
    frame = walk.at
    flags = data[frame + 8] if frame + 8 < len(data) else 0
    walk.at = frame + 9 + _palette_bytes(flags) + 1
    walk.skip_blocks()
    picture = bytes([_IMAGE]) + bytes(4) + data[frame + 4 : walk.at]
    sides = b"".join(side.to_bytes(2, "little") for side in size)
    head = data[:6] + sides + data[10 : 13 + _palette_bytes(data[10])]
    covered = max(canvas[0], corner[0] + size[0]), max(canvas[1], corner[1] + size[1])
    return Contents("GIF", head + control + picture + bytes([_END]), size, canvas=covered, corner=corner)


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


class _Walk:
    """A position in the file. Counts the parts that were passed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = MAX_PARTS + len(data) // _LEAST_BYTES_A_PART
        self.at = 0

    def number(self, at: int) -> int:
        return int.from_bytes(self._data[at : at + 2], "little")

    def byte(self) -> int:
        if self.at >= len(self._data):
            raise ImageRejected("not_an_image", "the GIF file ends before its picture")
        self._left -= 1
        if self._left < 0:
            raise too_complex("more blocks than a GIF of its length needs")
        self.at += 1
        return self._data[self.at - 1]

    def skip_blocks(self) -> None:
        """Pass over sub-blocks and their terminator, or to the end of the file."""
        while self.at < len(self._data) and (length := self.byte()):
            self.at = min(len(self._data), self.at + length)
