"""Writes the comment of an mp4 after its frames.

Tags are given to the muxer before the first frame, and how a video was decoded is known after the last one.
So room is kept in the file, and the comment is put there. No offset in the file changes.
"""

import mmap
import secrets
from pathlib import Path
from typing import Final

# More than what becomes known while decoding.
ROOM_BYTES: Final = 1024


def room_for(comment: str) -> str:
    """Return a text, unlike any other, to be stored in place of a comment that is `ROOM_BYTES` longer."""
    mark = f"framefit {secrets.token_hex(16)}"
    return mark.ljust(len(comment.encode()) + ROOM_BYTES)


def fill_room(path: Path, room: str, comment: str) -> bool:
    """Put the comment where the file holds `room`; returns False if it is not there or too small."""
    kept, content = room.encode(), comment.encode()
    if len(content) > len(kept):
        return False
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        at = mapped.find(kept)
        if at < 0:
            return False
        mapped[at : at + len(kept)] = content.ljust(len(kept))
        mapped.flush()
    return True
