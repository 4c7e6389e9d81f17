"""Where the camera looks: for every frame, the part of the photograph that it shows.

Arithmetic over sizes (width, height) and boxes (left, top, right, bottom) in pixels of the photograph. Every
box lies inside the photograph, so no frame shows what the photograph does not. Must not import torch.
"""

import math
from typing import TypeAlias

from app.pipelines.photo_pan.prompt import Motion

Size: TypeAlias = tuple[int, int]
Box: TypeAlias = tuple[float, float, float, float]

# A shorter clip goes less far, so that the speed is the same.
USUAL_FRAMES = 33
# Without the room for more, the camera moves by this part of the frame at least; a photograph that is not
# larger than the frame is enlarged for it.
LEAST_REACH = 0.15


def boxes(
    photo: Size, frame: Size, motion: Motion, frames: int, gravity: tuple[float, float] = (0.5, 0.5)
) -> list[Box]:
    """The box of each frame. All have the frame's aspect ratio and lie inside the photograph.

    `gravity` is the part of what is left over that lies at the left and at the top. Where the photograph is
    large enough, no box has fewer pixels than the frame: nothing is enlarged.
    """
    reach = motion.reach * min(1.0, (frames - 1) / (USUAL_FRAMES - 1))
    first, last = _scales(photo, frame, motion, reach)
    starts = _shares(photo, frame, motion, reach, (first + last) / 2, gravity)
    found = []
    for number in range(frames):
        part = eased(number / max(1, frames - 1))
        scale = first * (last / first) ** part
        width, height = scale * frame[0], scale * frame[1]
        left, top = (
            max(0.0, side - shown) * (begin + (end - begin) * part)
            for side, shown, (begin, end) in zip(photo, (width, height), starts, strict=True)
        )
        found.append((left, top, min(left + width, float(photo[0])), min(top + height, float(photo[1]))))
    return found


def eased(part: float) -> float:
    """The part of the way that is done after a part of the time: both from 0 to 1, slow at both ends."""
    return (1 - math.cos(math.pi * part)) / 2


def _scales(photo: Size, frame: Size, motion: Motion, reach: float) -> tuple[float, float]:
    """Pixels of the photograph a pixel of the frame, in the first frame and in the last one."""
    wide = widest = _scale_with_room(photo, frame, motion, 0.0)
    if motion.across or motion.down:
        wide = _scale_with_room(photo, frame, motion, reach)
        if wide < 1:
            wide = min(1.0, _scale_with_room(photo, frame, motion, min(reach, LEAST_REACH)))
    if not motion.zoom:
        return wide, wide
    wide = min(wide, widest)
    near = wide / (1 + reach)
    if near < 1:  # no further than to the photograph's own pixels, if that is far enough
        least = 1 + min(reach, LEAST_REACH)
        near = max(near, min(1.0, wide / least))
    return (wide, near) if motion.zoom > 0 else (near, wide)


def _scale_with_room(photo: Size, frame: Size, motion: Motion, reach: float) -> float:
    """The largest scale at which the camera can move by `reach` of the frame along its way."""
    return min(
        side / (shown * (1 + reach * abs(way)))
        for side, shown, way in zip(photo, frame, (motion.across, motion.down), strict=True)
    )


def _shares(
    photo: Size, frame: Size, motion: Motion, reach: float, scale: float, gravity: tuple[float, float]
) -> list[tuple[float, float]]:
    """For both axes, the part of the room before the box in the first frame and in the last one."""
    found = []
    for side, shown, way, share in zip(photo, frame, (motion.across, motion.down), gravity, strict=True):
        room = side - scale * shown
        travel = min(1.0, reach * scale * shown / room) if way and room > 0 else 0.0
        begin = share * (1 - travel)
        ends = (begin, begin + travel)
        found.append(ends if way >= 0 else ends[::-1])
    return found
