"""GPUs that the machine has and no worker uses: the reason, and how the other processes learn of it.

Owns the file that the parent writes and the API process reads, and the warnings in the log. Knows neither
drivers nor processes.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from app.artifacts.whole_file import replace_text
from app.jobs import Json

log = logging.getLogger(__name__)

FILE = "unused_gpus.json"
KERNEL_CARDS = Path("/proc/driver/nvidia/gpus")  # a folder for each card that the kernel's driver has


class UnusedReason(StrEnum):
    """Why a GPU has no worker."""

    NO_CUDA_BUILD = "no_cuda_build"  # torch was built without CUDA
    CANNOT_OPEN = "cannot_open"  # CUDA does not list it, or fails to open it
    GPU_LOST = "gpu_lost"  # fell off the bus
    NO_ACCESS = "no_access"  # the kernel has it, but this process reaches neither driver library nor CUDA
    HIDDEN = "hidden"  # CUDA_VISIBLE_DEVICES leaves it out
    NOT_SELECTED = "not_selected"  # FRAMEFIT_DEVICES does not name it

    @property
    def wanted(self) -> bool:
        """Whether the user's own variables leave the GPU out."""
        return self in (UnusedReason.HIDDEN, UnusedReason.NOT_SELECTED)

    @property
    def advice(self) -> str:
        """What to do so that the GPU is used."""
        return _ADVICE[self]


_ADVICE = {
    UnusedReason.NO_CUDA_BUILD: "Install a CUDA build of torch; until then jobs run on the CPU.",
    UnusedReason.CANNOT_OPEN: "Run nvidia-smi; check that the driver fits torch's CUDA version, and the "
    "container's runtime.",
    UnusedReason.GPU_LOST: "Run nvidia-smi for details; reset the GPU (nvidia-smi -r) or reboot.",
    UnusedReason.NO_ACCESS: "Start the container with --gpus all, or install the driver's libraries.",
    UnusedReason.HIDDEN: "Unset CUDA_VISIBLE_DEVICES, or add the GPU to it.",
    UnusedReason.NOT_SELECTED: 'Set FRAMEFIT_DEVICES to "auto", or add the GPU to it.',
}


@dataclass(frozen=True, slots=True)
class UnusedGpu:
    """A GPU without a worker. `uuid` and `name` are empty where they are not known."""

    uuid: str
    name: str
    reason: UnusedReason
    detail: str = ""

    def as_json(self) -> Json:
        """Return the JSON of `GET /devices`."""
        return {**asdict(self), "reason": self.reason.value, "advice": self.reason.advice}

    def __str__(self) -> str:
        known = " ".join(part for part in (self.name, self.uuid) if part) or "a GPU"
        return f"{known} is not used: {self.detail or self.reason.value.replace('_', ' ')}"


def unreachable_cards(folder: Path = KERNEL_CARDS) -> tuple[UnusedGpu, ...]:
    """Return the cards of the kernel's driver, for a process that reaches none through the libraries."""
    try:
        cards = sorted(folder.iterdir())
    except OSError:
        return ()
    detail = "the kernel has the card, but neither the driver's library nor CUDA reaches it"
    return tuple(UnusedGpu("", f"PCI {card.name}", UnusedReason.NO_ACCESS, detail) for card in cards)


def warn(unused: Iterable[UnusedGpu], *, on_cpu: bool) -> None:
    """Log each GPU without a worker: a warning unless the user left it out, or if jobs run on the CPU."""
    for gpu in unused:
        loud = not gpu.reason.wanted or (on_cpu and gpu.reason is UnusedReason.HIDDEN)
        log.log(
            logging.WARNING if loud else logging.INFO,
            "gpu_unused uuid=%s name=%s reason=%s jobs_run_on=%s detail=%s advice=%s",
            gpu.uuid,
            gpu.name,
            gpu.reason,
            "cpu" if on_cpu else "other_gpus",
            gpu.detail,
            gpu.reason.advice,
        )


def publish(data_dir: Path, unused: Sequence[UnusedGpu]) -> None:
    """Write the file for the API process; atomic, because it may read at any moment."""
    replace_text(data_dir / FILE, json.dumps([asdict(gpu) for gpu in unused]))


def withdraw(data_dir: Path) -> None:
    """Remove the file: the service ends."""
    (data_dir / FILE).unlink(missing_ok=True)


def published(data_dir: Path) -> tuple[UnusedGpu, ...]:
    """Return the GPUs of the running service on this data folder; empty where there is none."""
    try:
        found = json.loads((data_dir / FILE).read_text(encoding="utf-8"))
        return tuple(UnusedGpu(**{**gpu, "reason": UnusedReason(gpu["reason"])}) for gpu in found)
    except (OSError, ValueError, TypeError, KeyError):
        return ()
