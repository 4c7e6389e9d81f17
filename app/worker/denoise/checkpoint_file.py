"""The files of a denoise's checkpoint: what the encoders gave, once; and the loop's record, again and again.

Each is a safetensors file with a checksum, written beside the job's latents and renamed when it is complete
and on disk. Owns the format. Must not know jobs, pipelines or when a checkpoint is due.
"""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from adaptive.denoise.encoders import EncoderCall, EncoderRecord
from adaptive.denoise.randomness import RandomState
from adaptive.denoise.record import DenoiseRecord
from adaptive.pipelines import checksum
from adaptive.pipelines.recorded_call import sync_directory
from app.jobs import Json

FORMAT = "framefit-denoise-checkpoint"
FORMAT_VERSION = "1"


class DamagedCheckpoint(ValueError):
    """The files are not those that were written, or not of this format."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The records after some steps of `total`, and what they were made with (`identity`).

    `fallbacks` are the steps down until then, for the job's report.
    """

    identity: Mapping[str, str]
    total: int
    encoded: EncoderRecord
    denoised: DenoiseRecord
    fallbacks: tuple[Json, ...] = ()


class CheckpointFiles:
    """The two files of one job."""

    def __init__(self, inputs: Path, steps: Path) -> None:
        self._inputs = inputs
        self._steps = steps
        self._inputs_id: str | None = None  # of the file that this process has written or read

    def write(self, checkpoint: Checkpoint) -> int:
        """Write the checkpoint atomically and durably; returns its bytes. Raises `OSError`."""
        written = 0
        if self._inputs_id is None:
            self._inputs_id = secrets.token_hex(16)
            written = _write(self._inputs, {"id": self._inputs_id, **_encoded_tree(checkpoint.encoded)})
        denoised, tensors = _denoised_tree(checkpoint.denoised)
        tree = {
            "inputs": self._inputs_id,
            "identity": dict(checkpoint.identity),
            "total": checkpoint.total,
            "fallbacks": list(checkpoint.fallbacks),
            "record": denoised,
            "tensors": tensors,
        }
        return written + _write(self._steps, tree)

    def read(self) -> Checkpoint | None:
        """The checkpoint; None if there is none. Raises `DamagedCheckpoint`."""
        if not self._steps.exists():
            return None
        try:
            steps, inputs = _read(self._steps), _read(self._inputs)
            if steps["inputs"] != inputs["id"]:
                raise DamagedCheckpoint("its two files do not belong together")
            checkpoint = Checkpoint(
                steps["identity"],
                steps["total"],
                _encoded(inputs),
                _denoised(steps["record"], steps["tensors"]),
                tuple(steps["fallbacks"]),
            )
        except DamagedCheckpoint:
            raise
        except Exception as error:  # whatever is in a file that something else has written
            raise DamagedCheckpoint(f"{type(error).__name__}: {error}") from error
        self._inputs_id = inputs["id"]
        return checkpoint

    def remove(self) -> None:
        """Delete both files, the steps first."""
        for path in (self._steps, self._inputs):
            path.unlink(missing_ok=True)
        self._inputs_id = None


def _write(path: Path, tree: Json) -> int:
    tensors: Mapping[str, Tensor] = tree.pop("tensors")
    header = {"format": FORMAT, "version": FORMAT_VERSION, "tree": json.dumps(tree)}
    header[checksum.FIELD] = checksum.BLANK
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w+b") as file:
            file.write(save(dict(tensors), metadata=header))
            checksum.seal(file)
            file.flush()
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)  # what is left of a full disk is for the latents and the video
        raise
    sync_directory(path.parent)
    return size


def _read(path: Path) -> Json:
    checksum.verify(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT or header.get("version") != FORMAT_VERSION:
            raise DamagedCheckpoint(f"{path.name} is no checkpoint of version {FORMAT_VERSION}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    tree: Json = json.loads(header["tree"])
    return {**tree, "tensors": tensors}


def _encoded_tree(record: EncoderRecord) -> Json:
    tensors = {f"value.{name}": tensor for name, tensor in record.tensors.items()}
    calls = []
    for number, call in enumerate(record.calls):
        random = None if call.random is None else _random_tree(call.random, f"random.{number}", tensors)
        calls.append(
            {"name": call.name, "result": call.result, "random": random, "is_stored": call.is_stored}
        )
    start = _random_tree(record.start, "random.start", tensors)
    return {"calls": calls, "start": start, "tensors": tensors}


def _encoded(tree: Json) -> EncoderRecord:
    tensors = tree["tensors"]
    calls = [
        EncoderCall(
            **{**call, "random": None if call["random"] is None else _random(call["random"], tensors)}
        )
        for call in tree["calls"]
    ]
    return EncoderRecord(tuple(calls), _under("value.", tensors), _random(tree["start"], tensors))


def _denoised_tree(record: DenoiseRecord) -> tuple[Json, dict[str, Tensor]]:
    tensors = {f"value.{name}": tensor for name, tensor in record.tensors.items()}
    random = _random_tree(record.random, "random", tensors)
    plain = {name: getattr(record, name) for name in ("steps", "calls", "forms", "schedulers")}
    return {**plain, "random": random}, tensors


def _denoised(tree: Json, tensors: Mapping[str, Tensor]) -> DenoiseRecord:
    return DenoiseRecord(
        steps=tree["steps"],
        calls=tuple((name, form) for name, form in tree["calls"]),
        forms=tuple(tree["forms"]),
        schedulers=tuple(tree["schedulers"]),
        tensors=_under("value.", tensors),
        random=_random(tree["random"], tensors),
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def _random_tree(state: RandomState, name: str, tensors: dict[str, Tensor]) -> Json:
    own = [f"{name}.own.{number}" for number in range(len(state.own))]
    default = {device: f"{name}.default.{device}" for device in state.default}
    tensors.update(zip(own, state.own, strict=True))
    tensors.update({default[device]: each for device, each in state.default.items()})
    return {"own": own, "default": default}


def _random(tree: Json, tensors: Mapping[str, Tensor]) -> RandomState:
    default = {device: tensors[name] for device, name in tree["default"].items()}
    return RandomState(default, tuple(tensors[name] for name in tree["own"]))
