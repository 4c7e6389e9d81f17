"""A small LTX model that ships with Framefit: its folder, its default request, the requests that it refuses.

The library's examples use it, and it decodes latents that an earlier `photo-pan` made.
Owns the statements of `MODEL_CARD.md` that code must keep. Must not import torch, because the API process
imports this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SOURCE = "builtin:builtin"
MODEL_FOLDER = Path(__file__).with_name("model")


@dataclass(frozen=True, slots=True)
class Defaults:
    """The request values that the built-in model uses unless the caller gives others. Sizes in pixels."""

    height: int = 256
    width: int = 256
    frames: int = 17
    fps: int = 8
    steps: int = 2
    guidance_scale: float = 1.0


DEFAULTS = Defaults()


def build(_folder: Path) -> Path:
    """The model's folder. It ships with Framefit, so there is nothing to build."""
    return MODEL_FOLDER


FRAME_COUNTS = (9, 17, 25, 33)
SIDE_RANGE_PX = (128, 512)
SIDE_STEP_PX = 32
_UNSUPPORTED_MOTIONS = re.compile(r"\b(zoom\w*|dolly\w*|orbit\w*|rotat\w*|spin\w*)\b", re.IGNORECASE)


def refusal(*, prompt: str, height: int, width: int, frames: int) -> str | None:
    """Why the built-in model refuses the request, as text for the caller; None if it accepts it.

    Sizes in pixels. Other requests would give blurred videos.
    """
    low, high = SIDE_RANGE_PX
    for name, side in (("height", height), ("width", width)):
        if not low <= side <= high or side % SIDE_STEP_PX:
            sides = f"{low} to {high} pixels in steps of {SIDE_STEP_PX}"
            return f"the built-in model makes sides of {sides}; {name} is {side}"
    if frames not in FRAME_COUNTS:
        *fewer, most = map(str, FRAME_COUNTS)
        counts = f"{', '.join(fewer)} or {most}"
        return f"the built-in model makes {counts} frames; {frames} were requested"
    if unsupported := _UNSUPPORTED_MOTIONS.search(prompt):
        supported = "pans left, right, up or down, or holds still"
        return f"the built-in model {supported}; it does not support {unsupported[0].lower()!r}"
    return None
