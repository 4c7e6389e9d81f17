"""The frames that a pipeline returns itself, as pixels: a tensor, an array or pictures.

Owns the forms of diffusers' `output_type`: `pt` is `[B, F, C, H, W]` in 0..1, `np` is `[B, F, H, W, C]` in
0..1, `pil` a list of lists of pictures. Takes the first video. Must not know how the frames were made.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptive.types import VideoShape

# Frames converted at a time. Bounds the conversion's workspace; no more than these are copied at once.
_FRAMES_AT_A_TIME = 8

Pixels = NDArray[np.uint8]


class OwnFrames:
    """One video as its pipeline returned it. Raises `ValueError` for frames of another form, and for none."""

    def __init__(self, frames: Any) -> None:
        self._video = frames[0] if _is_batch(frames) else frames
        if not len(self._video):
            raise ValueError("the pipeline returned no frames")
        height, width, channels = self._pixels(slice(0, 1)).shape[1:]
        if channels != 3:
            raise ValueError(f"the pipeline returned frames of {channels} channels")
        self.shape = VideoShape(len(self._video), height, width)

    def parts(self) -> Iterator[Pixels]:
        """Yield the frames in order, uint8 `[f, H, W, 3]`, a few at a time."""
        for begin in range(0, self.shape.frames, _FRAMES_AT_A_TIME):
            yield self._pixels(slice(begin, begin + _FRAMES_AT_A_TIME))

    def frame(self, number: int) -> Pixels:
        """One frame, uint8 `[H, W, 3]`; a negative number counts from the end."""
        number %= self.shape.frames
        pixels: Pixels = self._pixels(slice(number, number + 1))[0]
        return pixels

    def _pixels(self, part: slice) -> Pixels:
        """Rounds as diffusers does where it makes pictures: half to even."""
        frames = self._video[part]
        if isinstance(frames, Tensor):
            whole = (frames.float().clamp(0, 1) * 255).round().to(torch.uint8)
            pixels: Pixels = whole.permute(0, 2, 3, 1).contiguous().cpu().numpy()
            return pixels
        if isinstance(frames, np.ndarray):
            if frames.dtype == np.uint8:
                return np.ascontiguousarray(frames)
            rounded: Pixels = (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)
            return rounded
        return np.stack([np.asarray(picture.convert("RGB")) for picture in frames])


def _is_batch(frames: Any) -> bool:
    """Whether these are videos, not the frames of one."""
    if isinstance(frames, Tensor | np.ndarray):
        if frames.ndim not in (4, 5):
            raise ValueError(f"the pipeline returned frames of shape {tuple(frames.shape)}")
        return bool(frames.ndim == 5)
    if not isinstance(frames, list | tuple) or not frames:
        raise ValueError(f"the pipeline returned {type(frames).__name__} in place of frames")
    return isinstance(frames[0], Tensor | np.ndarray | list | tuple)
