"""Writes tensors to a safetensors file part by part, in memory that does not grow with their length.

The format is a header with every tensor's shape, then the tensors' bytes. The shapes are known in advance, so
each part can be written at its position. Owns the layout and that the file appears atomically.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from torch import Tensor

from adaptive.pipelines import checksum
from app.artifacts.local_folder import part_of, publish

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}
_TIME = 2  # of `[B, C, T, h, w]`


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape `[B, C, T, h, w]` and dtype of a tensor to be written."""

    shape: tuple[int, int, int, int, int]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorFile:
    """Writes tensors part by part along time; a context manager.

    Leaving the block without `finish` deletes the unfinished file. A blank checksum among the metadata gets
    its value when the file is complete.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> None:
        self._path = path
        self._specs = dict(tensors)
        self._written = dict.fromkeys(tensors, 0)
        self._has_checksum = checksum.FIELD in metadata
        self._starts: dict[str, int] = {}
        end = 0
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        for name, spec in tensors.items():
            self._starts[name], end = end, end + spec.size_bytes
            offsets = [self._starts[name], end]
            header[name] = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._data_starts = 8 + len(text)
        self._file: BinaryIO = part_of(path).open("w+b")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._data_starts + end)

    def write(self, name: str, part: Tensor) -> None:
        """Write the next frames `[B, C, t, h, w]` of one tensor. Raises `ValueError` for another shape."""
        spec, done = self._specs[name], self._written[name]
        batch, channels, frames, height, width = spec.shape
        count = part.shape[_TIME]
        if (*part.shape[:_TIME], *part.shape[_TIME + 1 :]) != (batch, channels, height, width):
            raise ValueError(f"{name} is {spec.shape}, got a part of {tuple(part.shape)}")
        if done + count > frames:
            raise ValueError(f"{name} has {frames} frames, got {done + count}")
        frame_bytes = height * width * spec.dtype.itemsize
        rows = part.detach().to("cpu", spec.dtype).contiguous().flatten(0, 1)
        for row, values in enumerate(rows):
            self._file.seek(self._data_starts + self._starts[name] + (row * frames + done) * frame_bytes)
            self._file.write(values.contiguous().view(torch.uint8).numpy().tobytes())
        self._written[name] = done + count

    def finish(self) -> None:
        """Publish the complete file durably. Raises `ValueError` if frames of a tensor are missing."""
        for name, spec in self._specs.items():
            if self._written[name] != spec.shape[_TIME]:
                raise ValueError(f"{name} has {spec.shape[_TIME]} frames, {self._written[name]} were written")
        if self._has_checksum:
            checksum.seal(self._file)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        publish(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        part_of(self._path).unlink(missing_ok=True)
