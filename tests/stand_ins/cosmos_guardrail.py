"""The interface of the package `cosmos_guardrail`, whose checker has weights that are not here.

It refuses a prompt with the word `weapon`, and a video if `shows_nothing` is set. Like the real one it
changes frames (that one blurs faces): the first pixel of each becomes black.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class CosmosSafetyChecker(torch.nn.Module):
    shows_nothing = False

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3), requires_grad=False)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def check_text_safety(self, prompt: str) -> bool:
        return "weapon" not in prompt

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray | None:
        assert frames.dtype == np.uint8
        assert frames.ndim == 4
        if self.shows_nothing:
            return None
        frames = frames.copy()
        frames[:, 0, 0] = 0
        return frames
