"""One call of a pipeline that is recorded and may resume from the record of an earlier one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from adaptive.denoise.encoders import EncoderRecord, Encoders
from adaptive.denoise.randomness import Randomness
from adaptive.denoise.record import DenoiseLoop, DenoiseRecord
from adaptive.denoise.watch import watch


@dataclass(frozen=True, slots=True)
class Resumable:
    """What is recorded of the call: call `loop.step_done` after each step of the pipeline."""

    loop: DenoiseLoop
    encoders: Encoders


@contextmanager
def resumable(
    pipe: Any,
    device: torch.device,
    generators: Sequence[torch.Generator],
    resume: tuple[EncoderRecord, DenoiseRecord] | None = None,
) -> Iterator[Resumable]:
    """Record the pipeline's call in the block; with `resume`, begin after the recorded steps.

    `generators` are those that the pipeline is called with. The call must be the same as the recorded one, by
    the same weights on the same kind of device: then the latents are the same bit for bit. Raises
    `ReplayDiverged` from within the pipeline where it makes other calls than were recorded.
    """
    encoded, denoised = (None, None) if resume is None else resume
    randomness = Randomness(device, generators)
    loop = DenoiseLoop(pipe, randomness, device, denoised)
    encoders = Encoders(randomness, device, lambda: loop.has_begun, encoded)
    with encoders.watching(pipe), watch(pipe, [loop]):
        yield Resumable(loop, encoders)
