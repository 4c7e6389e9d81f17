"""Ranges of the seconds that a job takes, from the stages of earlier jobs of the same model and shape.

Pure arithmetic; it does not know the job table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.jobs import STAGE_PROGRESS, Job, Json, Stage

RECENT = 10  # jobs of a shape that count
LOADED_SECONDS = 0.5  # what the loading stage takes at most where the model is loaded already
# How far a range reaches beyond the fastest and the slowest of one earlier job; of more, less far.
FASTER_SHARE, SLOWER_SHARE = 0.3, 0.4


@dataclass(frozen=True, slots=True)
class Seconds:
    """A range of seconds."""

    low: float
    high: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.low + other.low, self.high + other.high)

    def part(self, share: float) -> "Seconds":
        """That share of both ends."""
        return Seconds(share * self.low, share * self.high)


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds that one job took, in all and in its stages; `shape` is empty where it is not known."""

    seconds: float
    decode_seconds: float
    denoise_seconds: float
    loading_seconds: float = 0.0
    shape: str = ""


def shape_of(job: Job) -> str:
    """The shape of a job's video as text."""
    spec = job.spec
    return shape_text(spec.width, spec.height, spec.num_frames - spec.loop)


def shape_text(width: int, height: int, frames: int) -> str:
    """A shape as text."""
    return f"{width}x{height}x{frames}"


def shape_of_event(video: Json | None) -> str:
    """The shape in the event of a job's end."""
    sizes = [(video or {}).get(name) for name in ("width", "height", "frames")]
    return "" if None in sizes else "x".join(map(str, sizes))


def loading_range(taken: Sequence[Taken]) -> Seconds:
    """Seconds to load the model, from those of `taken` that loaded it; none if no job did."""
    loads = [one.loading_seconds for one in taken if one.loading_seconds > LOADED_SECONDS]
    return widened(loads) if loads else Seconds(0.0, 0.0)


def stage_ranges(taken: Sequence[Taken], shape: str) -> tuple[Seconds, Seconds, Seconds] | None:
    """Seconds of the denoise, of the decode and of the rest of a job whose model is loaded.

    None before the first job of that shape.
    """
    same = [one for one in taken if one.shape == shape]
    # A job whose latents were kept did not denoise: it tells nothing of one that does.
    same = ([one for one in same if one.denoise_seconds > 0] or same)[-RECENT:]
    if not same or not shape:
        return None
    rest = [
        max(0.0, one.seconds - one.decode_seconds - one.denoise_seconds - one.loading_seconds) for one in same
    ]
    denoise = widened([one.denoise_seconds for one in same])
    return denoise, widened([one.decode_seconds for one in same]), widened(rest)


def remaining_range(job: Job, ranges: tuple[Seconds, Seconds, Seconds], loading: Seconds) -> Seconds | None:
    """Seconds that are left of a running job.

    None while it waits for memory of other programs, and while the rate of its download is not known.
    """
    denoise, decode, rest = ranges
    if job.stage is Stage.WAITING_FOR_MEMORY:
        return None
    if job.stage is Stage.DOWNLOADING:
        left_seconds = (job.download or {}).get("seconds_left")
        return None if left_seconds is None else widened([left_seconds]) + loading + denoise + decode + rest
    if job.stage is Stage.LOADING:
        return loading + denoise + decode + rest
    left = 1 - _share_of_stage(job)
    if job.stage is Stage.DENOISING:
        return denoise.part(left) + decode + rest
    return decode.part(left) + rest if job.stage is Stage.DECODING else rest


def widened(values: Sequence[float]) -> Seconds:
    """From the least to the most of the values and beyond, the further the fewer they are."""
    doubt = 1 / math.sqrt(len(values))
    return Seconds(min(values) * (1 - FASTER_SHARE * doubt), max(values) * (1 + SLOWER_SHARE * doubt))


def _share_of_stage(job: Job) -> float:
    begin, end = STAGE_PROGRESS[job.stage]
    return min(1.0, max(0.0, (job.progress - begin) / (end - begin)))
