"""Clips whose every pixel is known."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor


def picture(number: int, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth colours that move with the frame's number."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x * a + y * b) / 9 + number / 5) for a, b in ((1, 0), (0, 1), (1, 1))]
    return np.stack([(wave * 90 + 128) for wave in waves], -1).astype(np.uint8)


def write_clip(
    path: Path,
    frames: int,
    *,
    size: tuple[int, int] = (64, 64),
    fps: Fraction = Fraction(24),
    times: Sequence[int] | None = None,
) -> Path:
    """Lossless RGB, so that every pixel is known; `times` are in frames."""
    lossless = path.suffix == ".mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1" if lossless else "libx264", rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "bgr0" if lossless else "yuv420p"
        for number in range(frames):
            shown = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            shown.pts = number if times is None else times[number]
            shown.time_base = 1 / fps
            file.mux(stream.encode(shown))
        file.mux(stream.encode(None))
    return path


def pixels(frames: Sequence[int], size: tuple[int, int] = (64, 64)) -> Tensor:
    """Those frames of what `write_clip` writes, as diffusers' processors give them to a VAE."""
    stacked = torch.stack([torch.from_numpy(picture(number, *size)) for number in frames])
    return stacked.permute(3, 0, 1, 2)[None].float() / 255 * 2 - 1
