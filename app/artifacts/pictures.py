"""Where the pictures that clients send are kept: what any such place does.

A picture has a key, which is random: it says nothing of the picture, its job or its client. Rows of the job
table name keys. A picture is published before the row that names it is committed, kept after that, and
removed before the row is deleted. A crash may thus leave a picture that no row names, but never a row whose
picture is not there.
"""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

_KEY = re.compile(r"[0-9a-f]{32}")


class PictureMissing(Exception):
    """No picture has this key."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"there is no picture {key}")


class Pictures(Protocol):
    """A place of pictures; safe to use from many threads and many processes."""

    def publish(self, pictures: Mapping[str, bytes]) -> None:
        """Store pictures under new keys, all of them or none.

        When a row that names them is durable, so are they.
        """

    def keep(self, keys: Sequence[str]) -> None:
        """Take note that rows name these pictures; they can be read before, too."""

    def read(self, key: str) -> bytes:
        """Return a picture. Raises `PictureMissing`."""

    def remove(self, keys: Sequence[str]) -> None:
        """Delete pictures durably; those that are not there do not matter."""

    def not_kept(self, older_than_seconds: float) -> Iterator[str]:
        """Yield keys that may have been published in vain: no row may name them.

        Those that were published later than so many seconds ago are left out.
        """


def new_key() -> str:
    """Return a key that no picture has had."""
    return secrets.token_hex(16)


def is_key(text: str) -> bool:
    """Whether the text has the form of a key."""
    return _KEY.fullmatch(text) is not None
