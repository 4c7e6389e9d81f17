"""The small model that Framefit ships: where it is, what it is asked by default, what it refuses.

Owns the promises of `MODEL_CARD.md` that code must keep. Never imports torch: the API process reads this too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SOURCE = "builtin:builtin"
MODEL_FOLDER = Path(__file__).with_name("model")
NOTICE = (
    "The built-in model is a demonstration, not a film studio: it pans over your photo or holds it still."
)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the built-in model is asked for unless the caller says otherwise."""

    height: int = 256
    width: int = 256
    frames: int = 17
    fps: int = 8
    steps: int = 2
    guidance_scale: float = 1.0


DEFAULTS = Defaults()


def build(_folder: Path) -> Path:
    """Folder of the model; it comes with Framefit, so nothing is made."""
    return MODEL_FOLDER


FRAME_COUNTS = (9, 17, 25, 33)
SIDE_RANGE_PX = (128, 512)
SIDE_STEP_PX = 32
_BEYOND = re.compile(r"\b(zoom\w*|dolly\w*|orbit\w*|rotat\w*|spin\w*)\b", re.IGNORECASE)


def refusal(*, prompt: str, height: int, width: int, frames: int) -> str | None:
    """Why the built-in model will not make this, in words for the caller; None if it will.

    Sizes in pixels. Refusing is kinder than delivering blur.
    """
    low, high = SIDE_RANGE_PX
    for name, side in (("height", height), ("width", width)):
        if not low <= side <= high or side % SIDE_STEP_PX:
            sides = f"{low} to {high} pixels in steps of {SIDE_STEP_PX}"
            return f"the built-in model makes {sides}; {name} is {side}"
    if frames not in FRAME_COUNTS:
        *fewer, most = map(str, FRAME_COUNTS)
        counts = f"{', '.join(fewer)} or {most}"
        return f"the built-in model makes {counts} frames; {frames} were asked for"
    if beyond := _BEYOND.search(prompt):
        can = "pans left, right, up or down, or holds still"
        return f"the built-in model {can}; it cannot {beyond[0].lower()!r}"
    return None
