"""One denoise that is recorded, may run again, and may resume from the record of another process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from adaptive.denoise.encoders import EncoderRecord, Encoders
from adaptive.denoise.randomness import Randomness
from adaptive.denoise.record import DenoiseLoop, DenoiseRecord
from adaptive.denoise.watch import watch


class Resumable:
    """Records what a pipeline does on `device`; with `resume`, it begins after the recorded steps.

    Each run must be the same call as the recorded one, by the same weights on the same kind of device: then
    the latents are the same bit for bit. Call `loop.step_done` after each step of the pipeline.
    """

    def __init__(
        self, pipe: Any, device: torch.device, resume: tuple[EncoderRecord, DenoiseRecord] | None = None
    ) -> None:
        self._pipe = pipe
        self._device = device
        self._encoded = None if resume is None else resume[0]
        self.loop = DenoiseLoop(pipe, device, None if resume is None else resume[1])

    @contextmanager
    def running(self, generators: Sequence[torch.Generator]) -> Iterator[Resumable]:
        """Record the pipeline's call in the block, and answer what an earlier one has finished.

        `generators` are those that the pipeline is called with. Raises `ReplayDiverged` from within the
        pipeline where it makes other calls than were recorded.
        """
        randomness = Randomness(self._device, generators)
        self.loop.begin(randomness)
        self.encoders = Encoders(randomness, self._device, lambda: self.loop.has_begun, self._encoded)
        with self.encoders.watching(self._pipe), watch(self._pipe, [self.loop]):
            yield self

    @contextmanager
    def running_once(self) -> Iterator[Resumable]:
        """Only count, for a pipeline that cannot be resumed."""
        self.loop.begin(Randomness(self._device), may_repeat=False)
        with watch(self._pipe, [self.loop]):
            yield self


@contextmanager
def resumable(
    pipe: Any,
    device: torch.device,
    generators: Sequence[torch.Generator],
    resume: tuple[EncoderRecord, DenoiseRecord] | None = None,
) -> Iterator[Resumable]:
    """Record one call of the pipeline in the block; see `Resumable`."""
    with Resumable(pipe, device, resume).running(generators) as run:
        yield run
