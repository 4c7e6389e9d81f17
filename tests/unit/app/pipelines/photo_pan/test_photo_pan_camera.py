"""The camera of `photo-pan` stays inside the photo, starts and ends slowly, and goes as the prompt says."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.pipelines.photo_pan.camera import boxes
from app.pipelines.photo_pan.prompt import FAST, SLOW, STEADY, Motion, motion_of, unsupported_motion
from app.pipelines.photo_pan.resampling import frames
from app.pipelines.photo_pan.rules import size_for

FRAME = (512, 320)
PHOTOS = [(4000, 3000), (1024, 640), (900, 2000), (3000, 500), (512, 512), (512, 320), (200, 150)]
PROMPTS = [
    "pan left", "pan right", "tilt up", "pan down", "zoom in", "zoom out", "hold still", "a nice photo",
    "pan quickly to the right and up", "zoom out slowly, moving left",
]  # fmt: skip
MOTIONS = [
    ("The camera pans slowly to the right", Motion(across=1, reach=SLOW)),
    ("pan LEFT", Motion(across=-1)),
    ("it rises quickly", Motion(down=-1, reach=FAST)),
    ("tilt downwards", Motion(down=1)),
    ("up and to the left", Motion(across=-1, down=-1)),
    ("left, then right", Motion(across=-1)),
    ("zoom", Motion(zoom=1)),
    ("zoom in on the cat", Motion(zoom=1)),
    ("a slow zoom out", Motion(zoom=-1, reach=SLOW)),
    ("zooming slowly out of the valley", Motion(zoom=-1, reach=SLOW)),
    ("the camera pulls back", Motion(zoom=-1)),
    ("a gentle push in", Motion(zoom=1, reach=SLOW)),
    ("dolly in while moving right", Motion(across=1, zoom=1)),
    ("a static shot", Motion()),
    ("a nice photo", Motion(zoom=1, reach=SLOW)),
    ("a fast car in a street", Motion(zoom=1, reach=FAST)),
    ("", Motion(zoom=1, reach=SLOW)),
]


@pytest.mark.parametrize(("prompt", "motion"), MOTIONS)
def test_a_prompt_s_words_give_the_motion(prompt: str, motion: Motion) -> None:
    assert motion_of(prompt) == motion
    assert unsupported_motion(prompt) is None


@pytest.mark.parametrize("prompt", ["orbit the statue", "the camera rotates", "Spinning around"])
def test_a_motion_that_a_photo_cannot_show_is_named(prompt: str) -> None:
    assert unsupported_motion(prompt) in prompt.lower()


@pytest.mark.parametrize(("photo", "prompt"), [*itertools.product(PHOTOS, PROMPTS)])
def test_every_frame_shows_a_part_of_the_photo_in_its_own_aspect_ratio(
    photo: tuple[int, int], prompt: str
) -> None:
    for frame, count in ((FRAME, 33), ((320, 512), 9), ((256, 256), 1)):
        found = boxes(photo, frame, motion_of(prompt), count, (0.3, 0.8))
        assert len(found) == count
        for left, top, right, bottom in found:
            assert 0 <= left < right <= photo[0]
            assert 0 <= top < bottom <= photo[1]
            assert (right - left) / (bottom - top) == pytest.approx(frame[0] / frame[1])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_nothing_is_enlarged_where_the_photo_is_large_enough(prompt: str) -> None:
    for left, _, right, _ in boxes((1024, 640), FRAME, motion_of(prompt), 33):
        assert right - left >= FRAME[0] * (1 - 1e-9)


@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS if "still" not in prompt])
def test_the_camera_moves_in_every_photo_and_is_slow_at_both_ends(prompt: str) -> None:
    for photo in PHOTOS:
        found = np.array(boxes(photo, FRAME, motion_of(prompt), 33))
        steps = np.abs(np.diff(found, axis=0)).sum(1)
        share = (found[0, 2] - found[0, 0]) / FRAME[0]
        assert steps.sum() / share > 0.1 * FRAME[0], photo
        assert steps[0] < 0.15 * steps.max()
        assert steps[-1] < 0.15 * steps.max()
        assert steps.argmax() in range(10, 22)


def test_the_camera_goes_where_it_is_sent() -> None:
    def way(prompt: str) -> tuple[float, float, float]:
        found = boxes((2000, 1500), FRAME, motion_of(prompt), 33)
        first, last = np.array(found[0]), np.array(found[-1])
        middle = (last[:2] + last[2:] - first[:2] - first[2:]) / 2
        return middle[0], middle[1], (last[2] - last[0]) / (first[2] - first[0])

    right, left, up, down = (way(f"pan {name}") for name in ("right", "left", "up", "down"))
    assert right[0] == pytest.approx(-left[0])
    assert down[1] == pytest.approx(-up[1])
    assert right[0] > 300
    assert down[1] > 200
    assert (right[1], left[1], up[0], down[0]) == pytest.approx((0, 0, 0, 0))
    assert way("zoom in") == pytest.approx((0, 0, 1 / (1 + STEADY)))
    assert way("zoom out") == pytest.approx((0, 0, 1 + STEADY))
    both = way("zoom in to the right")
    assert both[0] > 100
    assert both[2] < 0.8


def test_gravity_decides_what_a_still_shows() -> None:
    still = motion_of("still")
    assert boxes((2000, 2000), FRAME, still, 2, (0.0, 0.0))[1] == (0, 0, 2000, 1250)
    assert boxes((2000, 2000), FRAME, still, 2, (1.0, 1.0))[1] == (0, 750, 2000, 2000)


def test_frames_lie_between_pixels_and_a_huge_photo_is_not_shifted() -> None:
    across = np.linspace(0, 255, 4000)
    photo = Image.fromarray(np.broadcast_to(across, (2500, 4000)).astype(np.uint8)).convert("RGB")
    way = boxes(photo.size, (256, 160), motion_of("pan right"), 9)
    for box, frame in zip(way, frames(photo, way, (256, 160)), strict=True):
        pixels = np.asarray(frame).astype(float)[80, 8:-8, 0]
        wanted = (box[0] + (np.arange(256)[8:-8] + 0.5) * (box[2] - box[0]) / 256) / 4000 * 255
        assert np.abs(pixels - wanted).max() < 1.1


@pytest.mark.parametrize(
    ("photo", "size"),
    [
        ((512, 320), (512, 320)), ((4000, 3000), (512, 320)), ((512, 512), (512, 320)),
        ((3000, 4000), (320, 512)), ((511, 900), (320, 512)), ((511, 400), None), ((300, 511), None),
    ],
)  # fmt: skip
def test_the_size_is_512x320_where_the_photo_has_the_pixels(
    photo: tuple[int, int], size: tuple[int, int] | None
) -> None:
    own, pixels = size_for(photo)
    assert own == size
    assert 65_536 <= pixels <= 512 * 320


def test_the_photo_that_ships_is_large_enough() -> None:
    with Image.open(Path(__file__).parents[5] / "app" / "assets" / "demo.jpg") as photo:
        assert size_for(photo.size)[0] == (512, 320)
