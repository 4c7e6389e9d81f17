"""Reads the header of a safetensors file, and one tensor, with every size checked before it is used."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.latents.foreign.rejected import LatentsRejected

MAX_HEADER_BYTES = 8 * 2**20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor's dtype as the format names it, its shape, and its bytes in the file, `start` to `stop`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The tensors of a file by name, and its metadata."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> SafetensorsHeader:
    """The file's header. Raises `LatentsRejected` if a size in it does not agree with the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise LatentsRejected(
                "damaged_file",
                f"{path.name} names a header of {length:,} bytes; the file has {size:,} bytes, "
                f"and headers at most {MAX_HEADER_BYTES:,}",
            )
        text = file.read(length)
    try:
        document = json.loads(text)
        metadata = document.pop("__metadata__", None) or {}
        tensors = {name: _entry(value, 8 + length, size) for name, value in document.items()}
        return SafetensorsHeader(tensors, {str(key): str(value) for key, value in metadata.items()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LatentsRejected("damaged_file", f"{path.name} has a damaged header: {error!r:.200}") from None


def _entry(value: dict[str, Any], data_starts: int, size: int) -> TensorEntry:
    shape = tuple(value["shape"])
    begin, end = value["data_offsets"]
    if not all(type(each) is int and 0 <= each < 2**63 for each in (*shape, begin, end)) or len(shape) > 8:
        raise ValueError(f"shape {shape} at {begin} to {end}")
    start, stop = data_starts + begin, data_starts + end
    if not start <= stop <= size:
        raise ValueError(f"data to byte {stop:,} of a file of {size:,} bytes")
    dtype = str(value["dtype"])
    if dtype in _DTYPES and math.prod(shape) * _DTYPES[dtype].itemsize != stop - start:
        raise ValueError(f"{stop - start:,} bytes for shape {shape} of {dtype}")
    return TensorEntry(dtype, shape, start, stop)


def read_tensor(path: Path, entry: TensorEntry, name: str, max_bytes: int) -> Tensor:
    """The tensor in host memory. Raises `LatentsRejected` for other dtypes, and above `max_bytes`."""
    if entry.dtype not in _DTYPES:
        raise LatentsRejected(
            "damaged_file", f"{name} has dtype {entry.dtype}: latents are in {', '.join(_DTYPES)}"
        )
    if entry.stop - entry.start > max_bytes:
        raise LatentsRejected(
            "damaged_file", f"{name} has {entry.stop - entry.start:,} bytes; the limit is {max_bytes:,}"
        )
    if entry.stop == entry.start:
        raise LatentsRejected("not_latents", f"{name} has shape {list(entry.shape)}: it is empty")
    data = bytearray(entry.stop - entry.start)
    with path.open("rb") as file:
        file.seek(entry.start)
        if file.readinto(data) != len(data):
            raise LatentsRejected("damaged_file", f"{path.name} ends within {name}")
    return torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(entry.shape)
