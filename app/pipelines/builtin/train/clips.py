"""Short moving clips cut from still photographs, in as many colours as there are clips.

Owns motions, cropping and colour augmentation. A clip is a window sliding over a photo by whole pixels, so
that nothing is interpolated and the true motion is known exactly. Knows nothing of models.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from app.pipelines.builtin.train.photos import Photo, Pixels, load

SHORT_SIDES_PX = (192, 256, 256, 320, 384, 512, 768)


@dataclass(frozen=True, slots=True)
class Motion:
    """Content velocity in pixels a frame; x to the right, y down. Panning left moves content right."""

    name: str
    x: int
    y: int


PAN_SPEED_PX = 2
STILL = Motion("still", 0, 0)
PANS = (
    Motion("pan left", PAN_SPEED_PX, 0),
    Motion("pan right", -PAN_SPEED_PX, 0),
    Motion("pan up", 0, PAN_SPEED_PX),
    Motion("pan down", 0, -PAN_SPEED_PX),
)
MOTIONS = (STILL, *PANS)


@dataclass(frozen=True, slots=True)
class ClipSize:
    """A clip's extent: frames and pixels."""

    frames: int
    height: int
    width: int


class ClipSource:
    """Cuts clips from photos held at several sizes, as [3, frames, height, width] float32 in -1..1."""

    def __init__(self, photos: Sequence[Photo], backgrounds: Path) -> None:
        self._sizes: list[list[Pixels]] = [_scaled(load(photo, backgrounds)) for photo in photos]
        self._weights = [photo.weight for photo in photos]

    def clip(self, rng: random.Random, motion: Motion, size: ClipSize) -> torch.Tensor:
        """One clip with `motion`, recoloured and mirrored at random."""
        reach_x, reach_y = abs(motion.x) * (size.frames - 1), abs(motion.y) * (size.frames - 1)
        need_w, need_h = size.width + reach_x, size.height + reach_y
        pixels = self._pick(rng, need_h, need_w)
        height, width = pixels.shape[:2]
        left = rng.randint(0, width - need_w) + max(0, motion.x) * (size.frames - 1)
        top = rng.randint(0, height - need_h) + max(0, motion.y) * (size.frames - 1)
        frames = []
        for index in range(size.frames):
            x, y = left - motion.x * index, top - motion.y * index
            frames.append(pixels[y : y + size.height, x : x + size.width])
        clip = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1
        return recolour(clip, rng)

    def _pick(self, rng: random.Random, need_h: int, need_w: int) -> Pixels:
        """A photo at a random size that holds the window, mirrored or turned by a quarter at random."""
        while True:
            sizes = rng.choices(self._sizes, self._weights)[0]
            pixels = rng.choice(sizes)
            if rng.random() < 0.5:
                pixels = pixels[:, ::-1]
            if rng.random() < 0.3:
                pixels = pixels.transpose(1, 0, 2)
            if pixels.shape[0] >= need_h and pixels.shape[1] >= need_w:
                return pixels


def _scaled(pixels: Pixels) -> list[Pixels]:
    image = Image.fromarray(pixels)
    short = min(image.size)
    copies = []
    for side in SHORT_SIDES_PX:
        scale = min(1.0, side / short)
        size = (round(image.width * scale), round(image.height * scale))
        copies.append(np.asarray(image.resize(size, Image.Resampling.LANCZOS)))
    return copies


# ITU-R BT.601: luma weights, and two chroma axes orthogonal to grey.
TO_LUMA_CHROMA = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
FROM_LUMA_CHROMA = torch.linalg.inv(TO_LUMA_CHROMA)


def recolour(clip: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Turn hue and saturation, contrast and brightness of a [3, frames, height, width] clip at random.

    Few photographs hold few colours: without this a narrow bottleneck drops a whole chroma axis unpunished.
    """
    chroma = torch.eye(3)
    if rng.random() < 0.75:
        angle, saturation = rng.uniform(-math.pi, math.pi), rng.uniform(0.5, 1.7)
        cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
        chroma[1:, 1:] = torch.tensor([[cos, -sin], [sin, cos]])
    contrast = rng.uniform(0.7, 1.2) if rng.random() < 0.5 else 1.0
    matrix = contrast * (FROM_LUMA_CHROMA @ chroma @ TO_LUMA_CHROMA)
    clip = torch.einsum("ij,jthw->ithw", matrix, clip)
    if rng.random() < 0.4:
        tint = torch.tensor([rng.gauss(0, 0.08) for _ in range(3)]) + rng.uniform(-0.15, 0.15)
        clip = clip + tint[:, None, None, None]
    return clip.clamp(-1, 1)
