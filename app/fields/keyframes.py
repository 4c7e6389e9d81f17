"""Pictures that a video passes through at given frames. Knows no files, HTTP or torch."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

MOST_KEYFRAMES = 8
FRAME_LIMIT = 100_000
# The names of their pictures: of the file fields of a form, and in the table of pictures.
PICTURES = tuple(f"keyframe_{number}" for number in range(MOST_KEYFRAMES))


class KeyFrame(BaseModel):
    """A frame of the video that a picture gives. The picture itself is stored apart."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    frame: int = Field(
        ge=-FRAME_LIMIT,
        lt=FRAME_LIMIT,
        description="The frame, from 1, as `image` is frame 0; -1 is the last one, -2 the one before it.",
    )
    strength: float = Field(
        1.0, gt=0, le=1, description="How closely the video follows the picture; 1: as closely as it can."
    )


def few_enough(keyframes: tuple[KeyFrame, ...]) -> tuple[KeyFrame, ...]:
    """The same key frames. Raises for too many."""
    if len(keyframes) > MOST_KEYFRAMES:
        raise PydanticCustomError(
            "too_many_keyframes",
            "a job takes at most {limit} key frames, not {count}",
            {"limit": MOST_KEYFRAMES, "count": len(keyframes)},
        )
    return keyframes


Keyframes = Annotated[tuple[KeyFrame, ...], AfterValidator(few_enough)]


def for_another_length(keyframes: Sequence[KeyFrame], num_frames: int) -> list[KeyFrame]:
    """The key frames of a video of that many frames, as a video of another length has them: one at its end
    stays at the end.
    """
    last = num_frames - 1
    return [each.model_copy(update={"frame": -1}) if each.frame == last else each for each in keyframes]


def counted_from_start(keyframes: Sequence[KeyFrame], num_frames: int) -> tuple[KeyFrame, ...]:
    """The key frames with frames counted from the start. A frame before the first one stays negative."""
    return tuple(
        each.model_copy(update={"frame": each.frame + num_frames}) if each.frame < 0 else each
        for each in keyframes
    )
