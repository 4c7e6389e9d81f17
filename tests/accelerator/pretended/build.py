"""Compiles the device, once for each state of its source and version of torch, in the user's cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "device"
# Its operators run in torch's own CPU kernels, so optimising the rest would only lengthen the build.
_FLAGS = ("-std=c++20", "-O0", "-fPIC", "-Wall", "-Werror", "-Wno-interference-size")


def compiler() -> str | None:
    """The C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def torch_folder() -> Path:
    """Folder of torch's package, without importing it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def build() -> Path:
    """Path of the compiled device; a minute or less the first time, on two cores.

    Raises `RuntimeError` with the compiler's message where it fails.
    """
    folder = _cache() / _key()
    library = folder / "pretended.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if not library.exists():  # another process may have been faster
            _compile(folder, library)
    return library


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "framefit" / "pretended-card"


def _sources() -> list[Path]:
    return sorted(SOURCE.glob("*.cpp"))


def _key() -> str:
    digest = hashlib.sha256(repr(_FLAGS).encode())
    for path in (*_sources(), *sorted(SOURCE.glob("*.h"))):
        digest.update(path.name.encode() + path.read_bytes())
    return f"torch-{importlib.metadata.version('torch')}-{sys.platform}-{digest.hexdigest()[:16]}"


def _compile(folder: Path, library: Path) -> None:
    torch = torch_folder()
    includes = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]

    def compiled(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        _run("-c", str(source), "-o", str(made), *_FLAGS, *includes)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        slowest_first = sorted(_sources(), key=lambda path: path.name != "operators.cpp")
        objects = [str(made) for made in pool.map(compiled, slowest_first)]
    draft = folder / "draft.so"
    _run("-shared", "-o", str(draft), *objects, f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10")
    draft.replace(library)


def _run(*arguments: str) -> None:
    found = compiler()
    if found is None:
        raise RuntimeError("no C++ compiler")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the pretended card does not compile:\n{done.stderr[-4000:]}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
