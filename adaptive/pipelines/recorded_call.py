"""The recorded `vae.decode` call of a pipeline, and its exact copy on disk.

Owns the file format. One file holds one clip: the tensors as safetensors, and their structure (scalars,
names, random-generator states) as JSON in the file's metadata, with a checksum of it all. So a call is on
disk completely or not at all.
This module does not know pipelines, how a call is captured, or how it is decoded.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from adaptive.device.accelerator import is_available, randomness_kept, set_random_state
from adaptive.pipelines import checksum

FORMAT = "framefit-decode-calls"
FORMAT_VERSION = 1
_SOUND = "sound"


@dataclass(frozen=True, slots=True)
class RecordedDecode:
    """One `vae.decode(latents, *args, **kwargs)`.

    `keep` is the range (start, stop) of the decoded frames that the pipeline kept; None means all. `rng`
    holds the states of the default random generators at the call, by device. A decoder that injects noise
    draws it from them, so the same call gives the same pixels later and in another process.
    """

    latents: Tensor
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    rng: Mapping[str, Tensor] = field(default_factory=dict)
    keep: tuple[int, int] | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "RecordedDecode":
        """The same call with its tensors on `device`, and floating-point tensors in `dtype`."""

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, dtype if value.is_floating_point() else None)
            if isinstance(value, list | tuple):
                return type(value)(moved(each) for each in value)
            return value

        kwargs = {name: moved(value) for name, value in self.kwargs.items()}
        latents, args = moved(self.latents), moved(tuple(self.args))
        return RecordedDecode(latents, args, kwargs, self.rng, self.keep)

    @contextmanager
    def replaying_noise(self) -> Iterator[None]:
        """Set the default random generators to the states of the recorded call within the block.

        A call without states, such as one that is decoded as it is made, draws from them as they are.
        """
        if not self.rng:
            yield
            return
        devices = [torch.device(name) for name in self.rng]
        with randomness_kept(*devices):
            for device in filter(is_available, devices):
                set_random_state(device, self.rng[str(device)])
            yield


@dataclass(frozen=True, slots=True)
class Sound:
    """Sound of a video: `[channels, samples]` of float32 in -1..1, on the CPU; `sample_rate` in Hz."""

    waveform: Tensor
    sample_rate: int

    def as_json(self) -> dict[str, int]:
        """Number of channels and sample rate, as JSON values."""
        return {"channels": self.waveform.shape[0], "sample_rate": self.sample_rate}


@dataclass(frozen=True, slots=True)
class RecordedClip:
    """A pipeline's output for one request: decode calls with consecutive frames, and the sound, if any."""

    calls: tuple[RecordedDecode, ...]
    sound: Sound | None = None


def save_calls(calls: Sequence[RecordedDecode], path: Path, sound: Sound | None = None) -> None:
    """Write the calls and the sound, if any, to `path` atomically and durably: they survive a power failure.

    Raises `TypeError`, naming the argument, for a value that is not a tensor, generator, dtype, number,
    string or container of those, and `OSError` where the disk is full or read-only.
    """
    tensors: dict[str, Tensor] = {}
    tree = [
        {
            name: _flatten(getattr(call, name), f"{index}.{name}", tensors)
            for name in ("latents", "args", "kwargs", "rng", "keep")
        }
        for index, call in enumerate(calls)
    ]
    header = {"format": FORMAT, "version": str(FORMAT_VERSION), "calls": json.dumps(tree)}
    header[checksum.FIELD] = checksum.BLANK
    if sound is not None:
        tensors[_SOUND] = sound.waveform.detach().to("cpu", torch.float32, copy=True).contiguous()
        header["sample_rate"] = str(sound.sample_rate)
    part = path.with_name(path.name + ".part")
    with part.open("w+b") as file:
        file.write(save(tensors, metadata=header))
        checksum.seal(file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync_directory(path.parent)


def load_calls(path: Path) -> list[RecordedDecode]:
    """The calls that `save_calls` wrote, bit for bit, on the CPU. Raises `ValueError` for any other file."""
    return list(load_clip(path).calls)


def load_clip(path: Path) -> RecordedClip:
    """The calls and sound that `save_calls` wrote, bit for bit, on the CPU. Raises `ValueError` for any other
    file, and for one whose bytes have changed since.
    """
    checksum.verify(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT or header.get("version") != str(FORMAT_VERSION):
            raise ValueError(f"{path} holds no recorded decode calls of version {FORMAT_VERSION}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    calls = tuple(
        RecordedDecode(**{name: _restore(value, tensors) for name, value in call.items()})
        for call in json.loads(header["calls"])
    )
    sound = Sound(tensors[_SOUND], int(header["sample_rate"])) if _SOUND in tensors else None
    return RecordedClip(calls, sound)


def sync_directory(path: Path) -> None:
    """Flush a directory to disk, so that new and renamed files in it survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; each tensor in it is stored in `tensors` under its dotted name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        # Copied, because two arguments may share storage, which safetensors refuses.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, torch.Generator):
        tensors[name] = value.get_state()
        return {"generator": name, "device": str(value.device)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _flatten(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    raise TypeError(f"decode argument {name} of type {type(value).__name__} cannot be recorded")


def _restore(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "generator" in value:
        drawn_on = torch.device(value["device"])
        generator = torch.Generator(drawn_on if is_available(drawn_on) else "cpu")
        generator.set_state(tensors[value["generator"]])
        return generator
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "dict":
        return {key: _restore(item, tensors) for key, item in content.items()}
    items = [_restore(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
