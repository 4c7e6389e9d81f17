"""What the accelerator runtime (CUDA, through torch) can open, asked in a process of its own.

Owns the question and its answer. The runtime knows what the driver's management library (NVML) may not tell:
which devices the user's own CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER show, in which order, and how much
memory they have. A process of its own, because the caller must not load torch, a context takes memory on the
device for as long as its process lives, and a broken driver can end the process that asks it.

This file must not import torch; `adaptive.device.runtime_listing` is the program that does.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

# torch's CUDA libraries are some gigabytes, which a cold disk delivers slowly.
ASK_SECONDS = 180.0
PROGRAM = "adaptive.device.runtime_listing"


@dataclass(frozen=True, slots=True)
class RuntimeDevice:
    """A device as the runtime sees it.

    `uuid` has no prefix such as "GPU-", and is empty where the runtime does not tell it. `free_bytes` is None
    where the device cannot be opened; `error` says why.
    """

    ordinal: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int | None
    error: str | None

    @property
    def opens(self) -> bool:
        """Whether a process can use the device. One whose memory is full opens once there is some."""
        return self.error is None or "out of memory" in self.error


@dataclass(frozen=True, slots=True)
class RuntimeAnswer:
    """The devices that the runtime can see, and why there are none.

    `cuda_build` is the CUDA version of torch's build, None if torch has none or could not be asked.
    """

    answered: bool
    cuda_build: str | None
    error: str | None
    devices: tuple[RuntimeDevice, ...]


def cuda_library_exists() -> bool:
    """Whether the CUDA driver's library can be loaded: without it no device can be opened."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@cache
def ask_runtime(visible: str | None = None) -> RuntimeAnswer:
    """Ask the runtime once; later calls return the same answer.

    `visible` takes the place of CUDA_VISIBLE_DEVICES; by default the user's own value holds. Takes the time
    of importing torch and of opening each device, which is some seconds.
    """
    return ask_in_process({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})


def ask_in_process(environ: Mapping[str, str]) -> RuntimeAnswer:
    """Ask the runtime in a new process with these additions to the environment."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", PROGRAM],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _no_answer(f"torch did not list its devices within {ASK_SECONDS:.0f} seconds")
    except OSError as error:
        return _no_answer(f"the process that lists torch's devices did not start: {error}")
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    try:
        return _parsed(json.loads(lines[-1]))
    except (IndexError, KeyError, TypeError, ValueError):
        return _no_answer(_end_of(done.returncode, done.stderr.decode("utf-8", "replace")))


def _parsed(answer: dict[str, Any]) -> RuntimeAnswer:
    devices = tuple(RuntimeDevice(**device) for device in answer["devices"])
    return RuntimeAnswer(True, answer["cuda_build"], answer["error"], devices)


def _no_answer(error: str) -> RuntimeAnswer:
    return RuntimeAnswer(False, None, error, ())


def _end_of(status: int, stderr: str) -> str:
    if status < 0:
        return f"the process that lists torch's devices was ended by signal {-status}"
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")
    return f"the process that lists torch's devices failed: {last}"
