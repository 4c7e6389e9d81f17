"""What `photo-pan` makes: its sides, the size that follows a photograph, the requests that it refuses.

Owns the statements of `MODEL_CARD.md` that code must keep. The API process imports this module, so it must
not import torch.
"""

from app.pipelines.photo_pan.camera import Size
from app.pipelines.photo_pan.prompt import unsupported_motion

SOURCE = "builtin:photo_pan"
SIDE_RANGE_PX = (128, 1024)
DEFAULT_SIZE: Size = (512, 320)
# A photo that is smaller than the default size is enlarged to at most so many pixels.
ENLARGED_PIXELS = 65_536


def size_for(photo: Size) -> tuple[Size | None, int]:
    """The video's size for a photo, and the most pixels of a video whose size follows the photo.

    The size is 512x320, upright for an upright photo, if the photo has so many pixels a side; else None.
    """
    wide, high = DEFAULT_SIZE if photo[0] >= photo[1] else DEFAULT_SIZE[::-1]
    pixels = min(DEFAULT_SIZE[0] * DEFAULT_SIZE[1], max(ENLARGED_PIXELS, photo[0] * photo[1]))
    return ((wide, high) if photo[0] >= wide and photo[1] >= high else None), pixels


def refusal(*, prompt: str, width: int, height: int) -> str | None:
    """Why the model refuses the request, as text for the caller; None if it accepts it. Sides in pixels."""
    low, high = SIDE_RANGE_PX
    for name, side in (("width", width), ("height", height)):
        if not low <= side <= high:
            nearest = min(max(side, low), high)
            return (
                f"photo-pan makes sides of {low} to {high} pixels; {name} is {side}, the nearest is {nearest}"
            )
    if motion := unsupported_motion(prompt):
        return (
            "photo-pan pans left, right, up or down, zooms in or out, or holds still; it does not support "
            f"{motion!r}"
        )
    return None
