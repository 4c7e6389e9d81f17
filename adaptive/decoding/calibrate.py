"""Measures batched, chunked and per-frame decodes of a VAE on this machine, in bounded time.

Owns the choice and order of the shapes that are decoded, and what is kept of each decode: times go to the fit
of speeds, memory to the learned margins. The plot needs matplotlib (the `calibrate` extra). This module does
not know models or files of the service.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.device.out_of_memory import memory_failure
from adaptive.device.probe import MemoryProbe
from adaptive.errors import AdaptiveError
from adaptive.families import family_of
from adaptive.memory.learned_costs import LearnedCosts
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.planner import RESERVE_BYTES, Policy, chunk_sizes
from adaptive.stream.offload import execution_device
from adaptive.types import LatentShape, Strategy, strategy_of

# Latent frames and latent pixels a side, in increasing order: the fit of speeds needs both to vary, and the
# first shapes take little time.
SHAPES = ((3, 4), (5, 4), (9, 4), (5, 8), (9, 8), (5, 16), (9, 16), (13, 16), (9, 32), (13, 32), (17, 32))
LEAST_SHAPES = 2


@dataclass(frozen=True, slots=True)
class Measurement:
    """One decode. Bytes are above weights and latents."""

    shape: LatentShape
    frames_per_chunk: int
    predicted_bytes: int
    upper_bytes: int
    measured_bytes: int | None
    seconds: float

    @property
    def strategy(self) -> Strategy:
        """The rung's name."""
        return strategy_of(self.frames_per_chunk, self.shape.frames)


@torch.no_grad()
def calibrate(
    vae: Any,
    profile: MemoryProfile,
    probe: MemoryProbe,
    learned_costs: LearnedCosts,
    *,
    limit_seconds: float,
    every_strategy: bool = False,
    reserve_bytes: int = RESERVE_BYTES,
    on_measured: Callable[[Measurement], None] = lambda _: None,
) -> list[Measurement]:
    """Decode random latents batched, in chunks of half the frames and of two, and per frame, small shapes
    first, until `limit_seconds` are over.

    `learned_costs` learns from each decode. A decode that earlier times predict to end after the limit is not
    started, so the limit is hardly exceeded; with `every_strategy` the smallest shape is decoded every way,
    however long that takes. Shapes that do not fit in the memory free now are skipped. If there was time for
    one shape only and no earlier times exist, its times are dropped: a decode so small does not predict
    others.
    """
    deadline = time.monotonic() + limit_seconds
    decode = _CalibrationDecodes(vae, profile, probe, learned_costs, reserve_bytes)
    decode.warm_up()
    timed_before = learned_costs.speeds.observations(profile)
    found: list[Measurement] = []
    for shape, size in _cases(profile):
        needed = every_strategy and (shape.frames, shape.height) == SHAPES[0]
        if not needed and time.monotonic() + decode.expected_seconds(shape, size) > deadline:
            break
        measured = decode.measure(shape, size)
        if measured is not None:
            found.append(measured)
            on_measured(measured)
    if not timed_before and len({each.shape for each in found}) < LEAST_SHAPES:
        learned_costs.speeds.forget(profile)
    return found


class _CalibrationDecodes:
    """Decodes of random latents with one VAE."""

    def __init__(
        self,
        vae: Any,
        profile: MemoryProfile,
        probe: MemoryProbe,
        learned_costs: LearnedCosts,
        reserve_bytes: int,
    ) -> None:
        self._reserve_bytes = reserve_bytes
        self._vae, self._profile, self._probe, self._learned_costs = vae, profile, probe, learned_costs
        self._device = execution_device(vae)
        _, self._kwargs = family_of(vae).self_test_case(vae)
        self._kwargs = {
            name: value.to(self._device) if isinstance(value, torch.Tensor) else value
            for name, value in self._kwargs.items()
        }

    def warm_up(self) -> None:
        """Decode once without learning from it: first calls take longer and more memory."""
        discarded = LearnedCosts.none(self._learned_costs.device, self._learned_costs.build)
        size = 1 if self._profile.can_stream else 3
        self._decode(LatentShape(1, self._profile.traits.latent_channels, 3, 4, 4), size, discarded)

    def expected_seconds(self, shape: LatentShape, frames_per_chunk: int) -> float:
        """Predicted seconds from the timings so far; 0 where there are none."""
        model = self._learned_costs.speeds.model(self._profile)
        return model.seconds(shape, frames_per_chunk) if model is not None else 0.0

    def measure(self, shape: LatentShape, frames_per_chunk: int) -> Measurement | None:
        """Decode once; None where it does not fit with this chunk size."""
        residuals = self._learned_costs.residuals
        try:
            # Predicted before the decode, because the decode changes the learned margins.
            predicted = self._profile.estimate(shape, frames_per_chunk, residuals)
            report = self._decode(shape, frames_per_chunk, self._learned_costs)
        except AdaptiveError:
            return None
        except Exception as error:
            if memory_failure(error) is None:
                raise
            return None
        if report.frames_per_chunk != frames_per_chunk:
            return None  # it ran out of memory and continued in smaller chunks
        return Measurement(
            shape,
            frames_per_chunk,
            predicted.live_bytes,
            predicted.upper_bytes,
            report.measured_peak_bytes,
            report.seconds,
        )

    def _decode(self, shape: LatentShape, frames_per_chunk: int, learned_costs: LearnedCosts) -> Any:
        decoder = AdaptiveDecoder(
            self._vae,
            profile=self._profile,
            probe=self._probe,
            policy=Policy(frames_per_chunk=frames_per_chunk, reserve_bytes=self._reserve_bytes),
            residuals=learned_costs.residuals,
            speeds=learned_costs.speeds,
        )
        sizes = (shape.batch, shape.channels, shape.frames, shape.height, shape.width)
        latents = torch.randn(sizes, dtype=self._vae.dtype, device=self._device)
        for frames in decoder.frames(latents, **self._kwargs):
            del frames
        return decoder.report


def _cases(profile: MemoryProfile) -> Iterator[tuple[LatentShape, int]]:
    """Each shape with each of its chunk sizes, in the order in which they are decoded."""
    for frames, side in SHAPES:
        shape = LatentShape(1, profile.traits.latent_channels, frames, side, side)
        for size in _sizes(profile, shape):
            yield shape, size


def _sizes(profile: MemoryProfile, shape: LatentShape) -> list[int]:
    """Chunk sizes to measure, largest first: all frames, half of them, two and one."""
    sizes = chunk_sizes(profile, shape.frames, Policy())
    wanted = {shape.frames, math.ceil(shape.frames / 2), 2, 1}
    return [size for size in sizes if size in wanted]


def as_markdown(measurements: list[Measurement], title: str) -> str:
    """Table of the measurements below `title`."""
    rows = [
        f"| {m.shape.frames} x {m.shape.height} x {m.shape.width} | {m.strategy} | {m.frames_per_chunk} "
        f"| {m.predicted_bytes / 1e6:.1f} | {m.upper_bytes / 1e6:.1f} | {_megabytes(m.measured_bytes)} "
        f"| {m.seconds:.3f} |\n"
        for m in measurements
    ]
    head = (
        f"{title}\n\n"
        "| latent frames x height x width | strategy | latent frames a chunk "
        "| live MB predicted | at most MB predicted | MB measured | seconds |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(rows)


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"


def plot(measurements: list[Measurement], path: Path, title: str) -> None:
    """Write a PNG that plots memory against time, one line a shape from batched to per-frame.

    Raises `ModuleNotFoundError`, naming the extra, where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the plot needs matplotlib: pip install 'framefit[calibrate]'", name=error.name
        ) from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="seconds", ylabel="MB above the weights")
    axes.set_title(title, fontsize=10)
    for shape in dict.fromkeys(each.shape for each in measurements):
        same = [each for each in measurements if each.shape == shape]
        label = f"{shape.frames} x {shape.height} x {shape.width}"
        needed = [(each.measured_bytes or each.predicted_bytes) / 1e6 for each in same]
        axes.plot([each.seconds for each in same], needed, marker="o", label=label)
        for each, height in zip(same, needed, strict=True):
            axes.annotate(str(each.frames_per_chunk), (each.seconds, height), fontsize=7)
    axes.legend(title="latent frames x height x width; numbers: frames a chunk", fontsize=7, title_fontsize=7)
    figure.savefig(path, dpi=120)
