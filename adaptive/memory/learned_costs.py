"""What one device taught under one build of torch: margins and speeds, in one file between runs.

Owns the file and what must be equal for it to count. Must not know: torch, how anything is measured.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from adaptive.memory.margins import LearnedMargins
from adaptive.memory.speed import Speeds

FORMAT = 3


@dataclass(slots=True)
class LearnedCosts:
    """Learned on `device` ("cpu", or "cuda" and the card's name) under `build` (torch and cuDNN versions)."""

    device: str
    build: str
    residuals: LearnedMargins = field(default_factory=LearnedMargins)
    speeds: Speeds = field(default_factory=Speeds)

    @classmethod
    def none(cls, device: str, build: str) -> Self:
        """Nothing learned yet."""
        return cls(device, build, LearnedMargins(device), Speeds())

    def summary(self) -> dict[str, Any]:
        """Margins and laws of speed, as JSON values, small enough for every heartbeat."""
        return {
            "build": self.build,
            "margins": self.residuals.summary(),
            "speeds": self.speeds.summary(),
        }

    @classmethod
    def from_summary(cls, device: str, summary: dict[str, Any]) -> Self:
        """For a process that only plans: predicts as the one summarised did."""
        residuals = LearnedMargins.from_summary(device, summary.get("margins") or {})
        return cls(
            device,
            summary.get("build") or "",
            residuals,
            Speeds.from_summary(summary.get("speeds") or {}),
        )

    def save(self, path: Path) -> None:
        """Write to `path`, atomically."""
        document = {
            "format": FORMAT,
            "device": self.device,
            "build": self.build,
            "residuals": self.residuals.to_json(),
            "speeds": self.speeds.to_json(),
        }
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps(document))
        draft.replace(path)

    @classmethod
    def load(cls, path: Path, *, device: str, build: str) -> Self:
        """What was learned on this device and build; nothing where there is no such file, or it is of another
        build or format. A file that cannot be understood counts as none: it only costs learning anew.
        """
        try:
            data = json.loads(path.read_text())
            if (data["format"], data["device"], data["build"]) != (FORMAT, device, build):
                return cls.none(device, build)
            residuals = LearnedMargins.from_json(device, data["residuals"])
            return cls(device, build, residuals, Speeds.from_json(data["speeds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls.none(device, build)
