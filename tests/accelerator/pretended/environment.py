"""The environment of a process that finds the pretended cards, in torch and at the driver."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from pretended import build
from pretended.machine import Machine

PRIVATE_NAME = "pretended"  # of the device as torch's PrivateUse1
AS_CUDA = "cuda"
_ROOT = Path(__file__).parents[3]


def environment(machine: Machine, nvml_library: Path, *, device: str = AS_CUDA) -> dict[str, str]:
    """Variables for any Python command, `framefit serve` with its workers included.

    `device` is `AS_CUDA` or `PRIVATE_NAME`. `nvml_library` is the stub driver (`tests/nvml_stub.py`).
    """
    build.build()
    here = Path(__file__).parent
    path = [here / "launch", here.parent, _ROOT / "tests", _ROOT]
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, inherited)]),
        "PRETENDED_CARDS": str(machine.path),
        "PRETENDED_DEVICE": device,
        "NVML_STUB_FILE": str(machine.path),
        "LD_LIBRARY_PATH": str(nvml_library.parent),
        "OMP_NUM_THREADS": "1",
    }


def unavailable() -> str | None:
    """Why there can be no pretended card here; None where there can."""
    if build.compiler() is None:
        return "the pretended card needs a C++ compiler (g++)"
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "torch is not installed"
    if any(Path(spec.origin).parent.glob("lib/libtorch_cuda*")):
        return "this torch has CUDA of its own, in whose place no card can be pretended"
    return None
