"""A file's tensors as its header describes them, and the error of a file that cannot be loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Of a header: far above any model's, and read in a second or two.
MOST_TENSORS = 100_000


class DamagedFile(Exception):
    """The file cannot be loaded; the message says why, without the file's name."""


def check_count(tensors: int) -> None:
    """Raise `DamagedFile` if a header has more tensors, or values, than any model."""
    if tensors > MOST_TENSORS:
        raise DamagedFile(
            f"has a damaged header: it names {tensors:,} tensors or values, the most that are read are "
            f"{MOST_TENSORS:,}: get it again"
        )


class CutShort(DamagedFile):
    """The file ends before the tensors that its header names."""

    def __init__(self, size_bytes: int, needed_bytes: int, needed: str) -> None:
        self.size_bytes = size_bytes
        self.needed_bytes = needed_bytes
        super().__init__(
            f"is cut short: it has {size_bytes:,} bytes, its header needs {needed}: get it again"
        )


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a file: its dtype as the format names it, its shape, and where its bytes lie.

    Shapes are torch's: rows first. The bytes are `start` to `start + size_bytes` of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class WeightsHeader:
    """The tensors of a file by name, and its metadata. `format` is "safetensors" or "gguf"."""

    format: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, Any]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of the tensors of each dtype, the most first."""
        found: dict[str, int] = {}
        for tensor in self.tensors.values():
            found[tensor.dtype] = found.get(tensor.dtype, 0) + tensor.size_bytes
        return dict(sorted(found.items(), key=lambda each: -each[1]))
