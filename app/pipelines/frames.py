"""Which frames of a video a pipeline class takes as pictures, and how its call is given them.

`FORMS` has one entry for each class that takes more than a first picture whatever its weights are. Wan takes
a last picture, too, but depends on the weights: a model's entry says so with `inputs`. Must not import torch.
"""

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.fields.keyframes import PICTURES
from app.jobs import JobSpec


@dataclass(frozen=True, slots=True)
class FramePicture:
    """A picture, the frame of the video that it is for, and how closely the video follows it."""

    image: Any
    frame: int
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class FrameForm:
    """How a pipeline class takes pictures of several frames.

    `arguments(pipe, pictures)` are those of the call, the first frame's picture included. `apart`: key frames
    stand at the last frame, and where the number of the frame less one is a multiple of it. Each picture
    beyond the first frame's is one more latent frame in every step.
    """

    arguments: Callable[[Any, Sequence[FramePicture]], dict[str, Any]]
    apart: int = 1

    def allows(self, frame: int, num_frames: int) -> bool:
        """Whether a picture may stand there: a key frame, or at frame 0 the first image."""
        return frame in (0, num_frames - 1) or (frame - 1) % self.apart == 0

    def place(self, frame: int) -> int:
        """The number of the place that holds the frame. Each takes one picture; place 0 is frame 0 alone."""
        return (frame - 1) // self.apart + 1

    def frames_of(self, place: int, num_frames: int) -> range:
        """The frames of a place."""
        return range(max(0, (place - 1) * self.apart + 1), min(place * self.apart + 1, num_frames))

    def nearest(self, frame: int, num_frames: int, taken: Collection[int]) -> int | None:
        """The nearest frame where a key frame may stand and whose place is not `taken`; None without one."""
        allowed = [
            each
            for each in range(num_frames)
            if self.allows(each, num_frames) and self.place(each) not in taken
        ]
        return min(allowed, key=lambda each: (abs(each - frame), each), default=None)

    @property
    def rule(self) -> str:
        """Where key frames may stand, for people."""
        return "any frame after the first" if self.apart == 1 else f"{self.apart}k+1 or the last frame"


def _ltx_conditions(_pipe: Any, pictures: Sequence[FramePicture]) -> dict[str, Any]:
    module = importlib.import_module("diffusers.pipelines.ltx.pipeline_ltx_condition")
    return {
        "conditions": [
            module.LTXVideoCondition(image=each.image, frame_index=each.frame, strength=each.strength)
            for each in pictures
        ]
    }


def _ltx2_conditions(pipe: Any, pictures: Sequence[FramePicture]) -> dict[str, Any]:
    module = importlib.import_module("diffusers.pipelines.ltx2.pipeline_ltx2_condition")
    ratio = pipe.vae_temporal_compression_ratio
    return {
        "conditions": [
            module.LTX2VideoCondition(
                frames=each.image,
                index=(each.frame - 1) // ratio + 1,  # the latent frame that holds it
                strength=each.strength,
            )
            for each in pictures
        ]
    }


FORMS: Mapping[str, FrameForm] = {
    "LTX2ConditionPipeline": FrameForm(_ltx2_conditions, apart=8),
    "LTXConditionPipeline": FrameForm(_ltx_conditions),
}


def inputs_of_class(pipeline: str) -> list[str]:
    """What every model of the class takes, for entries that do not say it."""
    return ["keyframes", "last_image"] if pipeline in FORMS else []


def frame_pictures(spec: JobSpec, pictures: Mapping[str, Any]) -> list[FramePicture]:
    """The job's pictures in the order of their frames; `pictures` are by field name."""
    found = [FramePicture(pictures["image"], 0)]
    if "last_image" in pictures:
        found.append(FramePicture(pictures["last_image"], spec.num_frames - 1))
    for number, each in enumerate(spec.keyframes):
        found.append(FramePicture(pictures[PICTURES[number]], each.frame, each.strength))
    return sorted(found, key=lambda each: each.frame)


def added_latent_frames(pipeline: str, spec: JobSpec) -> int:
    """Latent frames that each step computes beyond those of the video."""
    return more_pictures(spec) if pipeline in FORMS else 0


def more_pictures(spec: JobSpec) -> int:
    """How many pictures the job has beside that of the first frame."""
    return len(spec.keyframes) + (spec.last_image_size is not None)
