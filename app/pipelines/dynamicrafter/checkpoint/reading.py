"""Reads a checkpoint of the original layout and copies its tensors into diffusers components, key by key.

Owns file reading and the check that file and architecture match. Never executes code from a file: it reads
safetensors, or uses torch.load restricted to tensors. Both are memory-mapped, so that host memory never holds
the whole file.

    CheckpointError            the file cannot be used
    ├── UnreadableCheckpoint   it is not a file of tensors
    └── CheckpointMismatch     missing, extra or misshaped keys; carries all of them
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from app.pipelines.dynamicrafter.checkpoint.keymap import Layout, Source, canonical, is_unused, source_of

_NAMED_KEYS = 8
_DEEPSPEED_PREFIX = "_forward_module."


class CheckpointError(ValueError):
    """The checkpoint cannot be used."""


class UnreadableCheckpoint(CheckpointError):
    """The file is not a checkpoint of plain tensors."""


class CheckpointMismatch(CheckpointError):
    """File and architecture differ. `missing` and `extra` are keys; `misshaped` is (key, found, expected)."""

    def __init__(
        self,
        path: Path,
        missing: tuple[str, ...],
        extra: tuple[str, ...],
        misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...],
    ) -> None:
        self.path, self.missing, self.extra, self.misshaped = path, missing, extra, misshaped
        shapes = tuple(f"{key} is {found}, not {expected}" for key, found, expected in misshaped)
        kinds = (("missing", missing), ("extra", extra), ("misshaped", shapes))
        found = "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in kinds if names)
        super().__init__(f"{path.name} is not a checkpoint of this model ({found})")


def _first(names: tuple[str, ...]) -> str:
    rest = len(names) - _NAMED_KEYS
    return ", ".join(names[:_NAMED_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of `path` (`.safetensors`, or a torch file such as `model.ckpt`) by their original names.

    Unwraps `state_dict` and DeepSpeed's `module`. Raises FileNotFoundError or UnreadableCheckpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        content: dict[str, Any] = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except (UnreadableCheckpoint, OSError):
        raise
    except Exception as error:  # torch passes on whatever foreign bytes do to its unpickler
        fault = f"{path.name} is not a file of plain tensors ({_reason(error)})"
        raise UnreadableCheckpoint(f"{fault}: give the checkpoint as it was published") from error
    for wrapper in ("state_dict", "module"):
        if isinstance(content.get(wrapper), dict):
            prefix = _DEEPSPEED_PREFIX if wrapper == "module" else ""
            content = {str(key).removeprefix(prefix): value for key, value in content[wrapper].items()}
            break
    others = [
        str(key)
        for key, value in content.items()
        if not isinstance(key, str) or not isinstance(value, torch.Tensor)
    ]
    if others:
        raise UnreadableCheckpoint(f"{path.name} has values that are not tensors: {_first(tuple(others))}")
    return {canonical(key): value for key, value in content.items()}


def _reason(error: Exception) -> str:
    """Return the first sentence of the error; of torch's advice, only what its unpickler met."""
    text = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]
    return re.split(r"\.? Check the documentation|[.;] ", text)[0] or type(error).__name__


def _load_torch(path: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        # torch warns about pickles that it may not be able to read, and raises if it cannot.
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, dict):
        raise UnreadableCheckpoint(
            f"{path.name} contains a {type(content).__name__}, not a dictionary of tensors"
        )
    return content


def check(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    components: Mapping[str, nn.Module],
    layout: Layout,
) -> dict[str, dict[str, Source]]:
    """Check that file and architecture match exactly; returns the source of every tensor of every component.

    Compares names and shapes only, so `components` may be on the meta device. Raises CheckpointMismatch with
    all differences.
    """
    sources: dict[str, dict[str, Source]] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for name, component in components.items():
        state = component.state_dict()
        sources[name] = {key: source_of(name, key, layout) for key in state}
        for key, source in sources[name].items():
            expected[source.key] = source.original_shape(tuple(state[key].shape))
    missing = tuple(sorted(expected.keys() - tensors.keys()))
    extra = tuple(sorted(key for key in tensors.keys() - expected.keys() if not is_unused(key, layout)))
    misshaped = tuple(
        (key, tuple(tensors[key].shape), shape)
        for key, shape in sorted(expected.items())
        if key in tensors and tuple(tensors[key].shape) != shape
    )
    if missing or extra or misshaped:
        raise CheckpointMismatch(path, missing, extra, misshaped)
    return sources


def fill(
    component: nn.Module,
    sources: Mapping[str, Source],
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Load copies of the checked tensors, in `dtype`, into `component`, which may be on the meta device."""
    state = component.state_dict()
    filled = {
        key: _share(tensors[source.key], source).reshape(state[key].shape).to(dtype, copy=True)
        for key, source in sources.items()
    }
    component.load_state_dict(filled, strict=True, assign=True)
    component.requires_grad_(False).eval()


def _share(tensor: torch.Tensor, source: Source) -> torch.Tensor:
    return tensor if source.count == 1 else tensor.chunk(source.count)[source.index]
