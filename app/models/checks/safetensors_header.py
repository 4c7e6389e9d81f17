"""Reads the header of a safetensors file and checks it against the file's size. Reads no weights.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length, the header as
JSON, then the tensors' bytes without gaps.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # as the library's own limit
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class DamagedFile(Exception):
    """The file cannot be loaded; the message says why, without the file's name."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Dtype and sizes of one tensor in a file."""

    dtype: str
    elements: int
    size_bytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name. Raises `DamagedFile`, and `OSError` if it cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(max(_LENGTH_BYTES, len(LFS_POINTER)))
        if begin.startswith(LFS_POINTER):
            raise DamagedFile(pointer_text(size))
        length = int.from_bytes(begin[:_LENGTH_BYTES], "little")
        if size < _LENGTH_BYTES:
            raise DamagedFile(f"has {size:,} bytes, which is no safetensors file: get it again")
        if length > _LONGEST_HEADER:
            raise DamagedFile("is no safetensors file: get it again, or name a folder that has safetensors")
        if _LENGTH_BYTES + length > size:
            raise DamagedFile(_cut_short(size, f"more than {_LENGTH_BYTES + length:,}"))
        file.seek(_LENGTH_BYTES)
        text = file.read(length)
    tensors, data_bytes = _parsed(text)
    wanted = _LENGTH_BYTES + length + data_bytes
    if size < wanted:
        raise DamagedFile(_cut_short(size, f"{wanted:,}"))
    if size > wanted:
        raise DamagedFile(f"has {size:,} bytes, but its header describes {wanted:,}: get it again")
    return tensors


def pointer_text(size: int) -> str:
    """What is wrong with a Git LFS pointer in place of a file, and what to do."""
    return f"is a Git LFS pointer of {size:,} bytes instead of the file: run `git lfs pull` in its folder"


def _cut_short(size: int, wanted: str) -> str:
    return f"is cut short: it has {size:,} bytes, its header needs {wanted}: get it again"


def _parsed(text: bytes) -> tuple[dict[str, StoredTensor], int]:
    """The tensors, and the bytes of all of them."""
    try:
        document = json.loads(text)
        document.pop("__metadata__", None)
        found = {name: _tensor(name, value) for name, value in document.items()}
    except DamagedFile:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"has a damaged header ({error}): get it again") from None
    return {name: tensor for name, (tensor, _) in found.items()}, max(
        (end for _, end in found.values()), default=0
    )


def _tensor(name: str, value: Mapping[str, Any]) -> tuple[StoredTensor, int]:
    dtype = str(value["dtype"])
    bits = _BITS.get(dtype)
    if bits is None:
        known = ", ".join(sorted(_BITS))
        raise DamagedFile(
            f"has the tensor {name} of dtype {dtype}, which cannot be loaded; known are {known}"
        )
    begin, end = value["data_offsets"]
    elements = math.prod(value["shape"])
    wanted = elements * bits // 8
    if end - begin != wanted:
        raise DamagedFile(
            f"has a damaged header: {name} has {end - begin:,} bytes, not {wanted:,}: get it again"
        )
    return StoredTensor(dtype, elements, end - begin), end
