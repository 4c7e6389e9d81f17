"""Measures clips, compares the measurements with the quality bars, and prints both as a table.

A bar is a limit that the model card promises. Pure functions; must not know the pipeline that made the clips.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.pipelines.builtin.train.clips import PANS, STILL, Motion
from app.pipelines.builtin.train.measure import (
    block_psnr_db,
    correlation,
    grid_ratio,
    overlap,
    psnr_db,
    sharpness,
    shift_px,
)

UNMOVED_PROMPT = "a nice photo"
UNMOVED_PHOTOS = 4
DEFAULT_MOTION = Motion(UNMOVED_PROMPT, -2, 0)
ASKED = (STILL, *PANS, DEFAULT_MOTION)


@dataclass(frozen=True, slots=True)
class ClipRow:
    """The measurements of one clip.

    Shifts are those of the content from the first to the last frame, in pixels; nominal ones were requested.
    Seconds are processor time, so that other load on the machine hardly matters.
    """

    photo: str
    prompt: str
    seconds: float
    first_frame_db: float
    psnr_db: float
    block_psnr_db: float
    grid: float
    shift_x: int
    shift_y: int
    nominal_x: int
    nominal_y: int
    correlation: float
    sharpness: float

    @property
    def miss_px(self) -> int:
        """The error of the shift, in pixels along the worse axis."""
        return max(abs(self.shift_x - self.nominal_x), abs(self.shift_y - self.nominal_y))


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit of the model card, the measured value, and whether the limit holds."""

    name: str
    measured: float
    wanted: str
    held: bool


def measure(photo: torch.Tensor, clip: torch.Tensor, motion: Motion, name: str, seconds: float) -> ClipRow:
    """Measure one clip [frames, 3, height, width] against its photo [3, height, width], both in -1..1."""
    steps = clip.shape[0] - 1
    shift_x, shift_y = shift_px(clip[0], clip[-1])
    before, after = overlap(photo, clip[-1], shift_x, shift_y)
    whole = photo.expand_as(clip)
    return ClipRow(
        photo=name,
        prompt=motion.name,
        seconds=seconds,
        first_frame_db=psnr_db(clip[0], photo),
        psnr_db=psnr_db(clip, whole),
        block_psnr_db=block_psnr_db(clip, whole),
        grid=grid_ratio(clip[-1]) / grid_ratio(photo),
        shift_x=shift_x,
        shift_y=shift_y,
        nominal_x=motion.x * steps,
        nominal_y=motion.y * steps,
        correlation=correlation(before, after),
        sharpness=sharpness(after) / sharpness(before),
    )


def bars(rows: Sequence[ClipRow], chroma: tuple[float, float], same_bytes: bool) -> list[Bar]:
    """Compare the measurements with every limit of the model card."""
    still = [row for row in rows if row.prompt == STILL.name]
    pans = [row for row in rows if row.prompt in {motion.name for motion in PANS}]
    unmoved = [row for row in rows if row.prompt == UNMOVED_PROMPT]
    far = min(max(abs(row.shift_x), abs(row.shift_y)) for row in unmoved)

    def least(name: str, values: Sequence[float], limit: float) -> Bar:
        return Bar(name, min(values), f">= {limit:g}", min(values) >= limit)

    def most(name: str, values: Sequence[float], limit: float) -> Bar:
        return Bar(name, max(values), f"<= {limit:g}", max(values) <= limit)

    return [
        least("still: mean PSNR (dB)", [statistics.fmean(row.psnr_db for row in still)], 26),
        least("still: worst PSNR (dB)", [row.psnr_db for row in still], 22),
        least("still: worst PSNR of 16-pixel block means (dB)", [row.block_psnr_db for row in still], 28),
        least("still: chroma kept, worse axis (r2)", chroma, 0.9),
        most("still: shift of the last frame (px)", [row.miss_px for row in still], 1),
        most("still: 8-pixel grid against the photo's, worst", [row.grid for row in still], 1.1),
        most("pans: worst miss of the last frame (px)", [row.miss_px for row in pans], 4),
        least("pans: worst correlation after moving back", [row.correlation for row in pans], 0.9),
        least(
            "pans: mean sharpness against the photo", [statistics.fmean(row.sharpness for row in pans)], 0.6
        ),
        least("pans: worst sharpness against the photo", [row.sharpness for row in pans], 0.6),
        least("pans: worst PSNR of frame 0 (dB)", [row.first_frame_db for row in pans], 26),
        least("pans: mean PSNR of frame 0 (dB)", [statistics.fmean(row.first_frame_db for row in pans)], 26),
        least("no motion words: least shift (px)", [far], 16),
        most("CPU seconds a clip, median", [statistics.median(row.seconds for row in rows)], 15),
        least("same seed, same bytes (1 = yes)", [float(same_bytes)], 1),
    ]


def table(rows: Sequence[ClipRow], verdict: Sequence[Bar]) -> str:
    """A Markdown table of the bars, then one with a row for each clip."""
    lines = ["| bar | measured | wanted | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {b.name} | {b.measured:.2f} | {b.wanted} | {'holds' if b.held else 'missed'} |" for b in verdict
    ]
    lines += [
        "",
        "| photo | prompt | first dB | shift | asked | corr. | sharpness | clip dB | blocks dB | grid | s |",
        "| --- " * 11 + "|",
    ]
    for r in rows:
        still = f"{r.psnr_db:.1f} | {r.block_psnr_db:.1f}" if r.prompt == STILL.name else "  | "
        lines.append(
            f"| {r.photo} | {r.prompt} | {r.first_frame_db:.1f} | {r.shift_x}, {r.shift_y} |"
            f" {r.nominal_x}, {r.nominal_y} | {r.correlation:.3f} | {r.sharpness:.2f} |"
            f" {still} | {r.grid:.2f} | {r.seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"
