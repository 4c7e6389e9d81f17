"""Costs learned on one device under one build of torch: margins and speeds, kept in one file between runs.

Owns the file, which device and build it is valid for, and the costs that the decodes of one process share.
It does not know torch or how costs are measured.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Self

from adaptive.memory.denoise_costs import DenoiseCosts
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.speed import Speeds

FORMAT = 3


@dataclass(slots=True)
class LearnedCosts:
    """Margins and speeds of one device and build.

    `device` is "cpu", or "cuda" and the card's name; `build` holds the versions of torch and cuDNN.
    """

    device: str
    build: str
    residuals: LearnedMargins = field(default_factory=LearnedMargins)
    speeds: Speeds = field(default_factory=Speeds)
    denoise: DenoiseCosts = field(default_factory=DenoiseCosts)

    @classmethod
    def none(cls, device: str, build: str) -> Self:
        """Costs with nothing learned yet."""
        return cls(device, build, LearnedMargins(device), Speeds(), DenoiseCosts(device))

    def summary(self) -> dict[str, Any]:
        """Fitted margins and speeds as JSON values, small enough for every heartbeat."""
        return {
            "build": self.build,
            "margins": self.residuals.summary(),
            "speeds": self.speeds.summary(),
            "denoise": self.denoise.summary(),
        }

    @classmethod
    def from_summary(cls, device: str, summary: dict[str, Any]) -> Self:
        """Costs that predict as the summarized ones do, for a process that only plans."""
        residuals = LearnedMargins.from_summary(device, summary.get("margins") or {})
        return cls(
            device,
            summary.get("build") or "",
            residuals,
            Speeds.from_summary(summary.get("speeds") or {}),
            DenoiseCosts.from_summary(device, summary.get("denoise") or {}),
        )

    def save(self, path: Path) -> None:
        """Write to `path`, atomically."""
        document = {
            "format": FORMAT,
            "device": self.device,
            "build": self.build,
            "residuals": self.residuals.to_json(),
            "speeds": self.speeds.to_json(),
            "denoise": self.denoise.to_json(),
        }
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps(document))
        draft.replace(path)

    @classmethod
    def load(cls, path: Path, *, device: str, build: str) -> Self:
        """Read what was learned on this device and build.

        Returns empty costs where the file is missing, unreadable, or of another device, build or format: the
        costs are then learned again.
        """
        try:
            data = json.loads(path.read_text())
            if (data["format"], data["device"], data["build"]) != (FORMAT, device, build):
                return cls.none(device, build)
            residuals = LearnedMargins.from_json(device, data["residuals"])
            denoise = DenoiseCosts.from_json(device, data.get("denoise") or {})
            return cls(device, build, residuals, Speeds.from_json(data["speeds"]), denoise)
        except (OSError, ValueError, KeyError, TypeError):
            return cls.none(device, build)


_lock = Lock()
_of_process: dict[tuple[str, str], LearnedCosts] = {}


def costs_of_process(device: str, build: str) -> LearnedCosts:
    """What this process has learned on a device so far, to be added to; kept until the process ends.

    `enable` and `decode` have no file to learn from: each of their decodes learns for the next one.
    """
    with _lock:
        return _of_process.setdefault((device, build), LearnedCosts.none(device, build))
