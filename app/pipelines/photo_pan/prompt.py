"""Reads the camera's motion from a prompt's words. Must not know photos, and must not import torch."""

import re
from dataclasses import dataclass
from typing import Final

SLOW, STEADY, FAST = 0.2, 0.35, 0.6
"""How far the camera goes in a clip of usual length, as a part of the frame."""

_UNSUPPORTED: Final = re.compile(r"\b(orbit\w*|rotat\w*|spin\w*)\b", re.IGNORECASE)
_WORD: Final = re.compile(r"[a-z]+")
_ACROSS: Final = {"left": -1, "leftward": -1, "leftwards": -1, "right": 1, "rightward": 1, "rightwards": 1}
_DOWN: Final = {
    "up": -1, "upward": -1, "upwards": -1, "rise": -1, "rises": -1, "rising": -1,
    "down": 1, "downward": 1, "downwards": 1, "sink": 1, "sinks": 1, "sinking": 1,
}  # fmt: skip
_STILL: Final = frozenset({"still", "static", "frozen", "motionless"})
_PACES: Final = {
    SLOW: frozenset({"slow", "slowly", "slight", "slightly", "gentle", "gently", "subtle"}),
    FAST: frozenset({"fast", "quick", "quickly", "rapid", "rapidly", "far"}),
}
# A camera that moves along its axis: "zoom out", "the camera pulls back", "push in", "closer".
_ZOOM: Final = re.compile(
    r"\b(?:zoom|zooms|zooming|zoomed|dolly|dollies|dollying)\b(?P<rest>(?:\W+\w+){0,3})"
    r"|\b(?P<push>push(?:es|ing)?\s+(?:slowly\s+)?in|closer)\b"
    r"|\b(?P<pull>pull(?:s|ing)?\s+(?:slowly\s+)?(?:back|out|away))\b",
    re.IGNORECASE,
)
_OUTWARD: Final = frozenset({"out", "away", "back", "outward", "outwards"})


@dataclass(frozen=True, slots=True)
class Motion:
    """How the camera moves. `across`: -1 left, 1 right; `down`: -1 up, 1 down; `zoom`: 1 in, -1 out.

    `reach` is how far it goes in a clip of usual length, as a part of the frame.
    """

    across: int = 0
    down: int = 0
    zoom: int = 0
    reach: float = STEADY

    @property
    def is_still(self) -> bool:
        """Whether the camera holds still."""
        return not (self.across or self.down or self.zoom)


def motion_of(prompt: str) -> Motion:
    """The motion that a prompt asks for. Of contradicting words the first counts.

    A prompt that names no motion gives a slow zoom in.
    """
    words = _WORD.findall(prompt.lower())
    across = next((_ACROSS[word] for word in words if word in _ACROSS), 0)
    down = next((_DOWN[word] for word in words if word in _DOWN), 0)
    zoom = _zoom(prompt)
    reach = next((pace for pace, names in _PACES.items() if names.intersection(words)), STEADY)
    if across or down or zoom:
        return Motion(across, down, zoom, reach)
    if _STILL.intersection(words):
        return Motion()
    return Motion(zoom=1, reach=SLOW if reach == STEADY else reach)


def unsupported_motion(prompt: str) -> str | None:
    """The prompt's word for a motion that a flat photograph cannot show; None if there is none."""
    found = _UNSUPPORTED.search(prompt)
    return None if found is None else found[0].lower()


def _zoom(prompt: str) -> int:
    found = _ZOOM.search(prompt)
    if found is None:
        return 0
    if found["pull"]:
        return -1
    rest = _WORD.findall((found["rest"] or "").lower())
    return -1 if _OUTWARD.intersection(rest) else 1
