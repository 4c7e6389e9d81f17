"""Frames on their way from the card to the encoder: late copies, page-locked buffers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pretended import Card
from pretended.start import late_copies

from app.worker.frame_transfer import FrameTransfer, to_pixels


class SlowEncoder:
    """A video writer whose thread reads a chunk's frames only when the next one is there."""

    def __init__(self) -> None:
        self.parts: list[NDArray[np.uint8]] = []
        self.late: list[int] = []
        self._waiting: list[tuple[Callable[[], Any], Callable[[], None]]] = []

    def write_later(self, frames: Callable[[], Any], done: Callable[[], None]) -> None:
        self.late.append(late_copies())
        self._waiting.append((frames, done))
        if len(self._waiting) == 2:
            self.read_one()

    def read_one(self) -> None:
        frames, done = self._waiting.pop(0)
        self.parts.append(frames().copy())
        done()

    def check(self) -> None:
        """Nothing fails."""


@pytest.mark.usefixtures("card")
def test_frames_that_are_copied_late_are_those_that_were_sent(device: str) -> None:
    writer = SlowEncoder()
    transfer = FrameTransfer(writer, torch.device(device))  # type: ignore[arg-type]
    expected = []
    for number in range(6):
        frames = torch.rand(1, 3, 1 + number % 3, 16, 16, device=device) * 2 - 1
        expected.append(to_pixels(frames[0]).cpu().numpy())
        transfer.send(frames)
        frames.fill_(-1.0)  # the decoder uses the memory for the next chunk
        del frames
    writer.read_one()
    assert max(writer.late) >= 1, "no copy was late"
    assert np.array_equal(np.concatenate(writer.parts), np.concatenate(expected))


def test_a_fault_of_the_card_reaches_the_sender(card: Card, device: str) -> None:
    transfer = FrameTransfer(SlowEncoder(), torch.device(device))  # type: ignore[arg-type]
    frames = torch.zeros(1, 3, 2, 16, 16, device=device)
    card.fault = 1
    with pytest.raises(torch.AcceleratorError):
        transfer.send(frames)
