"""Reads the header of a safetensors file and checks it against the file's size.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length, the header as
JSON, then the tensors' bytes without gaps.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from app.models.files.sources import ByteSource
from app.models.files.stored import CutShort, DamagedFile, StoredTensor, WeightsHeader, check_count

NAME = "safetensors"
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # as the library's own limit
_MOST_DIMENSIONS = 16
_LONGEST_SHOWN = 100
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


def read(source: ByteSource) -> WeightsHeader:
    """The file's header. Raises `DamagedFile`, and `OSError` if it cannot be read."""
    size = source.size
    if size < _LENGTH_BYTES:
        raise DamagedFile(f"has {size:,} bytes, which is no safetensors file: get it again")
    length = header_bytes(source)
    if length > _LONGEST_HEADER:
        raise DamagedFile("is no safetensors file: get it again, or name a folder that has safetensors")
    if _LENGTH_BYTES + length > size:
        raise CutShort(size, _LENGTH_BYTES + length, f"more than {_LENGTH_BYTES + length:,}")
    tensors, metadata = _parsed(source.read(_LENGTH_BYTES, length), _LENGTH_BYTES + length)
    wanted = _end(tensors, _LENGTH_BYTES + length)
    if size < wanted:
        raise CutShort(size, wanted, f"{wanted:,}")
    if size > wanted:
        raise DamagedFile(f"has {size:,} bytes, but its header describes {wanted:,}: get it again")
    return WeightsHeader(NAME, tensors, metadata)


def _end(tensors: Mapping[str, StoredTensor], data_starts: int) -> int:
    """The byte after the last tensor. Raises `DamagedFile` if tensors overlap or leave gaps."""
    end = data_starts
    for name, each in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size_bytes)):
        if each.start != end:
            what = "overlaps another tensor" if each.start < end else "leaves a gap before it"
            raise DamagedFile(f"has a damaged header: {name} {what}: get it again")
        end += each.size_bytes
    return end


def header_bytes(source: ByteSource) -> int:
    """The length of the header that the file's first bytes name. Raises `OSError`."""
    return int.from_bytes(source.read(0, _LENGTH_BYTES), "little")


def _parsed(text: bytes, data_starts: int) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    try:
        document = json.loads(text)
        check_count(len(document))
        metadata = document.pop("__metadata__", None) or {}
        tensors = {name: _tensor(name, value, data_starts) for name, value in document.items()}
        return tensors, {str(key): str(value) for key, value in metadata.items()}
    except DamagedFile:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"has a damaged header ({error}): get it again") from None


def _tensor(name: str, value: Mapping[str, Any], data_starts: int) -> StoredTensor:
    dtype = str(value["dtype"])
    bits = _BITS.get(dtype)
    if bits is None:
        known = ", ".join(sorted(_BITS))
        raise DamagedFile(
            f"has the tensor {name} of dtype {dtype}, which cannot be loaded; known are {known}"
        )
    shape = tuple(value["shape"])
    begin, end = value["data_offsets"]
    numbers = (*shape, begin, end)
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{name} has {len(shape):,} dimensions")
    if not all(type(each) is int and 0 <= each < 2**63 for each in numbers):
        raise ValueError(f"{name} has a shape or a place that is no count: {str(numbers)[:_LONGEST_SHOWN]}")
    wanted = math.prod(shape) * bits // 8
    if end - begin != wanted:
        raise DamagedFile(
            f"has a damaged header: {name} has {end - begin:,} bytes for shape {list(shape)} of {dtype}, "
            f"not {wanted:,}: get it again"
        )
    return StoredTensor(dtype, shape, data_starts + begin, wanted)
