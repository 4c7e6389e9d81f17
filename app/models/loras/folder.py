"""The LoRA files of one folder, by name: a file `NAME.safetensors` directly in it is the LoRA NAME.

Clients give names and never paths. A name is looked up among the names of the folder's files, so that none
can lead anywhere else; a link out of the folder is no LoRA. Must not know models.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from app.fields.loras import NAME_PATTERN
from app.models.files.architectures.adapters import (
    Adapter,
    adapted_layers,
    flat,
    other_adapter,
    recognise_adapter,
)
from app.models.files.header import read_header
from app.models.files.stored import DamagedFile, WeightsHeader

SUFFIX = ".safetensors"
_BLOCK_BYTES = 2**22
_TEXT_ENCODERS = ("text_encoder", "lora_te", "te.", "te1.", "te2.")
_REMEMBERED_FILES = 1000
_MATRIX = re.compile(r"\.lora_(A|B|down|up)(\.default)?(\.(weight|bias))?$")

T = TypeVar("T")
Stamp = tuple[str, int, int, int]


class UnusableLora(Exception):
    """A file of the folder that cannot be applied; the message says why."""


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA file. `layers` are the shapes (out, in) of those that it changes, by name without dots.

    `left_out` counts tensors that diffusers leaves out: differences of norms.
    """

    name: str
    path: Path
    size_bytes: int
    adapter: Adapter
    layers: Mapping[str, tuple[int | None, int | None]]
    left_out: int


class LoraFolder:
    """The LoRAs in `folder`, which need not exist. Headers and digests are kept until a file changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._headers: dict[Stamp, LoraFile | str] = {}
        self._digests: dict[Stamp, str] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The names of all files, also of those that cannot be applied."""
        return sorted(self._paths())

    def find(self, name: str) -> LoraFile | None:
        """The LoRA of that name; None if there is none. Raises `UnusableLora`."""
        path = self._paths().get(name)
        if path is None:
            return None
        try:
            found = self._remembered(self._headers, path, _described)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnusableLora(f"LoRA {name} cannot be read: {error.strerror}") from None
        if isinstance(found, str):
            raise UnusableLora(f"LoRA {name} {found}")
        return found

    def sha256(self, lora: LoraFile) -> str:
        """The digest of the file's bytes. Raises `OSError`."""
        return self._remembered(self._digests, lora.path, _digest)

    def _paths(self) -> dict[str, Path]:
        """The folder's files by name, without links that lead out of it."""
        found = {}
        for path in self._folder.glob(f"*{SUFFIX}") if self._folder.is_dir() else ():
            name = path.name.removesuffix(SUFFIX)
            if re.match(NAME_PATTERN, name) and path.is_file() and self._is_inside(path):
                found[name] = path
        return found

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._folder.resolve())

    def _remembered(self, known: dict[Stamp, T], path: Path, read: Callable[[Path], T]) -> T:
        stamp = _stamp(path)
        with self._lock:
            if stamp in known:
                return known[stamp]
        found = read(path)
        if _stamp(path) == stamp:
            with self._lock:
                while len(known) >= _REMEMBERED_FILES:
                    known.pop(next(iter(known)))
                known[stamp] = found
        return found


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def _described(path: Path) -> LoraFile | str:
    """The LoRA in the file, or why it holds none that can be applied."""
    try:
        header = read_header(path)
    except DamagedFile as error:
        return str(error)
    if header.format != "safetensors":
        return "is a GGUF file: get it as safetensors"
    if any(name.startswith(_TEXT_ENCODERS) for name in header.tensors):
        return "changes a text encoder, too: only LoRAs of transformers are applied"
    kind = other_adapter(header)
    if kind is not None:
        return f"is a {kind}, not a LoRA"
    adapter = recognise_adapter(header)
    if adapter is None:
        return "holds no LoRA"
    other = next(_other_tensors(header), None)
    if other is not None:
        return f"holds more than low-rank matrices, such as {other}, which would be ignored"
    layers = {flat(name): shape for name, shape in adapted_layers(header)[0].items()}
    left_out = sum(name.endswith(".diff") for name in header.tensors)
    name = path.name.removesuffix(SUFFIX)
    return LoraFile(name, path, header.size_bytes, adapter, layers, left_out)


def _other_tensors(header: WeightsHeader) -> Iterator[str]:
    """Tensors that are neither a matrix of low rank nor its alpha, and no difference of a bias or a norm."""
    known = (".alpha", ".diff", ".diff_b")
    return (name for name in header.tensors if not _MATRIX.search(name) and not name.endswith(known))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
