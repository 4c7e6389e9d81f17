"""Ranges of the seconds that a job takes, from the stages of earlier jobs of the same model and shape.

Pure arithmetic; it does not know the job table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """Seconds that one attempt at a job took, in all and in its stages.

    `shape` is empty where it is not known. The attempt computed `steps_computed` of the job's `steps`: fewer
    if it went on after a checkpoint. Both are 0 where that is not known, and if the latents were there.
    """

    seconds: float
    decode_seconds: float
    denoise_seconds: float
    loading_seconds: float = 0.0
    shape: str = ""
    steps: int = 0
    steps_computed: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the attempt did all of its job."""
        return self.denoise_seconds > 0 and self.steps_computed == self.steps

    def denoise_seconds_of(self, steps: int) -> float:
        """Seconds of that many steps at this attempt's speed."""
        return self.denoise_seconds * steps / self.steps_computed

    def completed(self) -> "Taken":
        """As if the attempt had computed all steps of its job."""
        if self.is_whole or not self.steps_computed:
            return self
        denoise_seconds = self.denoise_seconds_of(self.steps)
        seconds = self.seconds + denoise_seconds - self.denoise_seconds
        return replace(self, seconds=seconds, denoise_seconds=denoise_seconds, steps_computed=self.steps)


def shape_of(job: Job) -> str:
    """The shape of a job's video as text."""
    spec = job.spec
    return shape_text(spec.width, spec.height, spec.num_frames - spec.loop)


def shape_text(width: int, height: int, frames: int) -> str:
    """A shape as text."""
    return f"{width}x{height}x{frames}"


def whole_jobs(taken: Sequence[Taken]) -> list[Taken]:
    """The whole jobs among `taken`. Without any: the others, completed as far as their steps are known."""
    whole = [one for one in taken if one.is_whole]
    return whole or [one.completed() for one in taken if one.steps_computed] or list(taken)


def download_seconds(job: Job) -> float | None:
    """Seconds that a running job still downloads its model; None while the rate is not known."""
    if job.stage is not Stage.DOWNLOADING:
        return 0.0
    left: float | None = (job.download or {}).get("seconds_left")
    return left


def steps_left(job: Job) -> int:
    """Steps that the denoise of a job still takes in whole: all of them while it runs, none after it.

    Those that a waiting job keeps are done.
    """
    steps = job.spec.num_inference_steps
    if job.stage is Stage.DENOISING:
        return steps
    if job.latents_path is not None:
        return 0
    kept = job.preempted or {"step": 0, "steps": 1}
    left_share: float = 1 - kept["step"] / kept["steps"]
    return round(steps * left_share)


def steps_of_event(denoise: Json | None) -> tuple[int, int]:
    """Steps of the job, and how many of them the attempt computed, in the event of a job's end."""
    told = denoise or {}
    steps, computed = told.get("steps") or 0, told.get("steps_computed") or 0
    # A pipeline's loop may have another number of steps than was asked for.
    looped = computed + (told.get("resumed_from_step") or 0)
    return (steps, round(steps * computed / looped)) if looped else (0, 0)


def shape_of_event(video: Json | None) -> str:
    """The shape in the event of a job's end."""
    sizes = [(video or {}).get(name) for name in ("width", "height", "frames")]
    return "" if None in sizes else "x".join(map(str, sizes))


def loading_range(taken: Sequence[Taken]) -> Seconds:
    """Seconds to load the model, from those of `taken` that loaded it; none if no job did."""
    loads = [one.loading_seconds for one in taken if one.loading_seconds > LOADED_SECONDS]
    return widened(loads) if loads else Seconds(0.0, 0.0)


def stage_ranges(taken: Sequence[Taken], shape: str, steps: int) -> tuple[Seconds, Seconds, Seconds] | None:
    """Seconds of the denoise, of the decode and of the rest of a job whose model is loaded.

    `steps` is how many it computes. None before the first job of that shape.
    """
    same = [one for one in taken if one.shape == shape]
    if steps:
        # An attempt that computed no step tells nothing of one that does. The denoise encodes the prompt
        # and the image, too, so whole jobs of as many steps tell more than the time of a step.
        same = [one for one in same if one.steps_computed]
        same = [one for one in same if one.is_whole and one.steps == steps] or same
    same = same[-RECENT:]
    if not same or not shape:
        return None
    rest = [
        max(0.0, one.seconds - one.decode_seconds - one.denoise_seconds - one.loading_seconds) for one in same
    ]
    denoise = widened([one.denoise_seconds_of(steps) for one in same]) if steps else Seconds(0.0, 0.0)
    return denoise, widened([one.decode_seconds for one in same]), widened(rest)


def remaining_range(job: Job, ranges: tuple[Seconds, Seconds, Seconds], loading: Seconds) -> Seconds | None:
    """Seconds that are left of a running job.

    None while it waits for memory of other programs, and while the rate of its download is not known.
    """
    denoise, decode, rest = ranges
    if job.stage is Stage.WAITING_FOR_MEMORY:
        return None
    if job.stage is Stage.DOWNLOADING:
        left_seconds = download_seconds(job)
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
