"""Latents of diffusers (`output_type="latent"`) that `torch.save` wrote: a tensor, or a dict, a tuple or a
pipeline's output with one.

`torch.load` reads them with `weights_only`, which runs no code from the file. What it allows includes
`bytearray`, which takes as much memory as the file says, so that only what `torch.save` writes of latents is
read. Outputs of pipelines are objects of diffusers: `_output` stands in for their classes, which are not
imported.
"""

import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.latents.foreign.found import FileFormat, Found, as_pipelines_do, checked
from app.latents.foreign.rejected import LatentsRejected
from app.models.files.stored import WeightsHeader

NAMES = ("latents", "frames", "samples", "latent", "video")
MAX_PICKLE_BYTES = 2 * 2**20
MAX_DIRECTORY_BYTES = 2**20
_DEPTH = 5
_NEEDED = re.compile(
    r"collections\.OrderedDict|(__builtin__|builtins)\.set|torch\._utils\._rebuild_(tensor_v[23]|parameter)"
    r"|torch\.(storage\.)?\w+Storage|torch\.(Size|device|bool|b?float\d+|u?int\d+)"
)
_OUTPUT = re.compile(r"(diffusers|app)\.pipelines\.[\w.]+\.\w+Output")
# These restore their latents before they return them; all others return them as they were denoised.
_RESTORE = ("LTX2",)


def _output(*fields: Any) -> OrderedDict[Any, Any]:
    """Stands in for a class of outputs: a dictionary, to which their fields are added by name."""
    return OrderedDict(enumerate(fields))


def _read(path: Path, _header: WeightsHeader | None) -> Found | None:
    sizes = _part_sizes(path)
    latents, notes = _latents_in(_loaded(path), path.name)
    # torch maps as many bytes as the pickle names, also beyond the part that holds them.
    if latents.device.type == "cpu" and latents.untyped_storage().nbytes() not in sizes:
        raise LatentsRejected("damaged_file", f"{path.name} has no part of the size that its tensor names")
    return Found(
        "torch.save file of diffusers latents",
        checked(latents, path.name),
        lambda entry: not entry.pipeline.startswith(_RESTORE),
        assumed=True,
        frames_first=as_pipelines_do,
        notes=notes,
    )


def _part_sizes(path: Path) -> set[int]:
    """The sizes of an archive's parts in bytes.

    Raises `LatentsRejected` if its directory, its pickle or its parts could exhaust memory.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 98))
        end = file.read(98)
    mark = end[-22:]
    if mark[:4] != b"PK\x05\x06" or mark[-2:] != b"\0\0":
        raise LatentsRejected("damaged_file", f"{path.name} is not a whole file of torch.save")
    directory = struct.unpack("<I", mark[12:16])[0]
    if end[:4] == b"PK\x06\x06":  # the record of archives that may be larger; readers prefer it
        directory = struct.unpack("<Q", end[40:48])[0]
    if directory > min(size, MAX_DIRECTORY_BYTES):
        raise LatentsRejected("damaged_file", f"{path.name} has a directory of {directory:,} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LatentsRejected(
            "damaged_file", f"{path.name} is not a whole file of torch.save: {error}"
        ) from error
    # torch.save compresses nothing; a compressed part could unfold to any size.
    sizes = [part.file_size for part in parts]
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(sizes) > size:
        raise LatentsRejected(
            "damaged_file", f"{path.name} has compressed or overlapping parts, which torch.save never writes"
        )
    pickles = [part for part in parts if part.filename.endswith("data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        raise LatentsRejected(
            "damaged_file", f"{path.name} has no data.pkl of a few tensors, as torch.save writes"
        )
    return set(sizes)


def _loaded(path: Path) -> Any:
    """What the file holds; tensors are mapped from the file, not read."""
    try:
        pickled = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
        named = {
            str(name).replace(" ", ".", 1)
            for code, name, _ in pickletools.genops(pickled)
            if code.name == "GLOBAL"
        }
        outputs = [name for name in named if _OUTPUT.fullmatch(name)]
        refused = sorted(name for name in named if not (_NEEDED.fullmatch(name) or _OUTPUT.fullmatch(name)))
        if not refused:
            with torch.serialization.safe_globals([(_output, name) for name in outputs]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch and pickle raise many kinds over a damaged file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise LatentsRejected("damaged_file", f"{path.name} cannot be loaded: {reason[0][:200]}") from error
    raise LatentsRejected(
        "unsafe_pickle",
        f"{path.name} holds objects of {', '.join(refused)[:300]}, which may run code or take any "
        "amount of memory: save the tensor alone, torch.save(output.frames, ...)",
    )


def _latents_in(value: Any, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """The tensor of latents in what was saved, and what was left out."""
    notes: tuple[str, ...] = ()
    for _ in range(_DEPTH):
        if isinstance(value, Tensor):
            return value, notes
        if isinstance(value, Mapping):
            # A pipeline's output is a dictionary, with the fields by position, too.
            key = next((each for each in (*NAMES, 0) if each in value), None)
            key = next(iter(value)) if key is None and len(value) == 1 else key
            if key is None:
                raise LatentsRejected(
                    "no_latents",
                    f"{name} has {', '.join(map(str, list(value)[:10]))[:300]}, none of {', '.join(NAMES)}",
                )
            value = value[key]
        elif isinstance(value, list | tuple) and value:
            notes = (f"the first of {len(value)} parts",) if len(value) > 1 else notes
            value = value[0]
        else:
            break
    raise LatentsRejected("no_latents", f"{name} holds {type(value).__name__}, not a tensor of latents")


def _refuse_old(path: Path, _header: WeightsHeader | None) -> Found | None:
    raise LatentsRejected(
        "old_torch_file",
        f"{path.name} is in torch's format from before 1.6, or a pickle: save it again with "
        "torch.save(torch.load(..., weights_only=True), ...)",
    )


FORMAT = FileFormat(_read, start=b"PK\x03\x04")
OLD = FileFormat(_refuse_old, start=b"\x80")
