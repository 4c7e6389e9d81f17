"""The motions that the model makes, and training squares cut from photographs with random colours.

Owns motions, cropping and colour augmentation. Must not know models.
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
    """The content's velocity in pixels a frame, x to the right and y down. A pan left moves content right."""

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


class CropSource:
    """Cuts random squares from photos, which it keeps at several sizes."""

    def __init__(self, photos: Sequence[Photo], backgrounds: Path) -> None:
        self._sizes: list[list[Pixels]] = [_scaled(load(photo, backgrounds)) for photo in photos]
        self._weights = [photo.weight for photo in photos]

    def crop(self, rng: random.Random, side_px: int) -> torch.Tensor:
        """One square [3, side, side], float32 in -1..1, randomly recoloured, mirrored and transposed."""
        pixels = self._pick(rng, side_px)
        height, width = pixels.shape[:2]
        left, top = rng.randint(0, width - side_px), rng.randint(0, height - side_px)
        square = pixels[top : top + side_px, left : left + side_px].copy()
        return recolour(torch.from_numpy(square).permute(2, 0, 1).float() / 127.5 - 1, rng)

    def _pick(self, rng: random.Random, side_px: int) -> Pixels:
        """A photo at a random size that is at least `side_px`, randomly mirrored and transposed."""
        while True:
            sizes = rng.choices(self._sizes, self._weights)[0]
            pixels = rng.choice(sizes)
            if rng.random() < 0.5:
                pixels = pixels[:, ::-1]
            if rng.random() < 0.3:
                pixels = pixels.transpose(1, 0, 2)
            if min(pixels.shape[:2]) >= side_px:
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


def recolour(picture: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Change hue, saturation, contrast and brightness of a picture [3, height, width] at random.

    A few photographs have few colours. Without this, the fit with few components drops a whole chroma axis.
    """
    chroma = torch.eye(3)
    if rng.random() < 0.75:
        angle, saturation = rng.uniform(-math.pi, math.pi), rng.uniform(0.5, 1.7)
        cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
        chroma[1:, 1:] = torch.tensor([[cos, -sin], [sin, cos]])
    contrast = rng.uniform(0.7, 1.2) if rng.random() < 0.5 else 1.0
    matrix = contrast * (FROM_LUMA_CHROMA @ chroma @ TO_LUMA_CHROMA)
    picture = torch.einsum("ij,jhw->ihw", matrix, picture)
    if rng.random() < 0.4:
        tint = torch.tensor([rng.gauss(0, 0.08) for _ in range(3)]) + rng.uniform(-0.15, 0.15)
        picture = picture + tint[:, None, None]
    return picture.clamp(-1, 1)
