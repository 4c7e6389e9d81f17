"""Reads the header of a safetensors file of latents, and one tensor, with every size checked before use."""

from pathlib import Path

import torch
from torch import Tensor

from app.latents.foreign.rejected import LatentsRejected
from app.models.files import safetensors
from app.models.files.sources import LocalFile
from app.models.files.stored import CutShort, DamagedFile, StoredTensor, WeightsHeader

MAX_HEADER_BYTES = 8 * 2**20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_header(path: Path) -> WeightsHeader:
    """The file's header. Raises `LatentsRejected` if a size in it does not agree with the file."""
    source = LocalFile(path)
    length = safetensors.header_bytes(source)
    if not 2 <= length <= min(source.size - 8, MAX_HEADER_BYTES):
        raise LatentsRejected(
            "damaged_file",
            f"{path.name} names a header of {length:,} bytes; the file has {source.size:,} bytes, "
            f"and headers at most {MAX_HEADER_BYTES:,}",
        )
    try:
        return safetensors.read(source)
    except CutShort as error:
        text = f"data to byte {error.needed_bytes:,} of a file of {error.size_bytes:,} bytes"
        raise LatentsRejected("damaged_file", f"{path.name} has a damaged header: {text}") from None
    except DamagedFile as error:
        raise LatentsRejected("damaged_file", f"{path.name} {str(error)[:300]}") from None


def read_tensor(path: Path, entry: StoredTensor, name: str, max_bytes: int) -> Tensor:
    """The tensor in host memory. Raises `LatentsRejected` for other dtypes, and above `max_bytes`."""
    if entry.dtype not in _DTYPES:
        raise LatentsRejected(
            "damaged_file", f"{name} has dtype {entry.dtype}: latents are in {', '.join(_DTYPES)}"
        )
    if entry.size_bytes > max_bytes:
        raise LatentsRejected(
            "damaged_file", f"{name} has {entry.size_bytes:,} bytes; the limit is {max_bytes:,}"
        )
    if not entry.size_bytes:
        raise LatentsRejected("not_latents", f"{name} has shape {list(entry.shape)}: it is empty")
    data = bytearray(entry.size_bytes)
    with path.open("rb") as file:
        file.seek(entry.start)
        if file.readinto(data) != len(data):
            raise LatentsRejected("damaged_file", f"{path.name} ends within {name}")
    return torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(entry.shape)
