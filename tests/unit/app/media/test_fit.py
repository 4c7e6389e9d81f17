"""Shapes that follow a picture, and what is cut, added or stretched where they do not."""

import io
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from app.config import Settings
from app.jobs import JobSpec
from app.media.fit import FITS, GRAVITIES, frame, framed, nearest_shape, shape_like, side_like
from app.media.images import open_image
from app.models.entries import load_models

MODELS = load_models(Settings())


@pytest.mark.parametrize(
    ("picture", "pixels", "multiple", "shape"),
    [
        ((1080, 1920), 256 * 256, 32, (192, 320)),
        ((1920, 1080), 256 * 256, 32, (320, 192)),
        ((4032, 3024), 256 * 256, 32, (288, 224)),
        ((1000, 1000), 256 * 256, 32, (256, 256)),
        ((8, 8), 256 * 256, 32, (256, 256)),
        ((1080, 1920), 768 * 512, 32, (448, 800)),
        ((3000, 2000), 768 * 512, 32, (768, 512)),
        ((2000, 3000), 768 * 512, 32, (512, 768)),
        ((1920, 1080), 832 * 480, 16, (832, 480)),
        ((1080, 1920), 832 * 480, 16, (480, 832)),
        ((1080, 1920), 1024 * 576, 64, (576, 1024)),
        ((9000, 1000), 256 * 256, 32, (672, 96)),
        ((1000, 16000), 256 * 256, 32, (64, 1024)),
    ],
)
def test_the_shape_has_the_pictures_aspect_within_the_budget(
    picture: tuple[int, int], pixels: int, multiple: int, shape: tuple[int, int]
) -> None:
    assert shape_like(picture, pixels=pixels, multiple=multiple, least=64, most=16_384) == shape


side = st.integers(8, 16_384)


@settings(max_examples=60, deadline=None)
@given(side, side, st.sampled_from(sorted(MODELS)))
def test_every_picture_gets_a_shape_that_its_model_makes(wide: int, high: int, name: str) -> None:
    from app.api.requests.job_spec import job_spec

    entry = MODELS[name]
    asked = {"prompt": "pan left", "model": name}
    spec = job_spec(asked, MODELS, measure=lambda: (wide, high))
    assert spec.model == name
    assert spec.width * spec.height <= entry.defaults.width * entry.defaults.height
    if not entry.shapes and name != "photo-pan":  # its camera moves inside the photo, in sizes of its own
        upright = (spec.width, spec.height) if wide <= high else (spec.height, spec.width)
        assert upright[0] <= upright[1], "a tall picture gets a tall video"
        # No other legal shape keeps more of the picture without being much smaller.
        cut = frame((wide, high), (spec.width, spec.height)).cut_share()
        assert cut <= 0.25 or max(wide, high) > 2 * min(wide, high)


@settings(max_examples=100, deadline=None)
@given(side, side, side, side, st.sampled_from(FITS), st.sampled_from(sorted(GRAVITIES)))
def test_what_is_cut_and_what_is_shown_make_the_picture(
    wide: int, high: int, width: int, height: int, fit: str, gravity: str
) -> None:
    framing = frame((wide, high), (width, height), fit, gravity)
    cut, bars = framing.cut(), framing.bars()
    left, top, right, bottom = framing.shown
    assert 0 <= left < right <= wide + 1e-6
    assert 0 <= top < bottom <= high + 1e-6
    assert abs(cut["left"] + cut["right"] + (right - left) - wide) <= 1
    assert abs(cut["top"] + cut["bottom"] + (bottom - top) - high) <= 1
    x, y, beyond, below = framing.filled
    assert (bars["left"] + beyond - x + bars["right"], bars["top"] + below - y + bars["bottom"]) == (
        width,
        height,
    )
    assert fit == "cover" or not any(cut.values())
    assert fit == "contain" or not any(bars.values())
    assert 0 <= framing.cut_share() < 1
    if fit == "stretch":
        assert (
            framing.stretch() == pytest.approx(width * high / (height * wide), rel=0.2)
            or framing.stretch() == 1
        )
    north, west = "north" in gravity, "west" in gravity
    for first, at_edge in (("top", north), ("left", west)):
        assert not at_edge or (cut[first] == 0 and bars[first] == 0)


def test_the_fields_of_a_request_are_those_that_the_arithmetic_knows() -> None:
    fields = JobSpec.model_fields
    assert get_args(fields["fit"].annotation) == FITS
    assert get_args(fields["gravity"].annotation) == tuple(GRAVITIES)


def test_centred_cover_is_what_pillow_makes() -> None:
    picture = Image.effect_noise((97, 203), 90).convert("RGB")
    for size in ((64, 64), (96, 32), (32, 96), (97, 203), (300, 100)):
        same = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(framed(picture, size)), np.asarray(same)), size


def quadrants(wide: int, high: int) -> Image.Image:
    """Red at the top left, green at the top right, blue at the bottom left, white at the bottom right."""
    image = Image.new("RGB", (2, 2))
    image.putdata([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)])
    return image.resize((wide, high), Image.Resampling.NEAREST)


@pytest.mark.parametrize(
    ("gravity", "corners"),
    [
        ("north", [(255, 0, 0), (0, 255, 0), (255, 0, 0), (0, 255, 0)]),
        ("south", [(0, 0, 255), (255, 255, 255), (0, 0, 255), (255, 255, 255)]),
        ("center", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]),
        ("northeast", [(255, 0, 0), (0, 255, 0), (255, 0, 0), (0, 255, 0)]),
        ("west", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]),
    ],
)
def test_gravity_keeps_its_side_of_a_tall_picture(gravity: str, corners: list[tuple[int, ...]]) -> None:
    shown = framed(quadrants(40, 200), (40, 40), "cover", gravity)
    assert [shown.getpixel(at) for at in ((2, 2), (37, 2), (2, 37), (37, 37))] == corners


def test_gravity_keeps_its_side_of_a_wide_picture() -> None:
    for gravity, left in (("west", (255, 0, 0)), ("southeast", (0, 255, 0))):
        assert framed(quadrants(200, 40), (40, 40), "cover", gravity).getpixel((2, 2)) == left


def test_contain_shows_all_four_corners_between_black_bars() -> None:
    shown = framed(quadrants(40, 80), (80, 80), "contain", "east")
    pixels = [shown.getpixel(at) for at in ((2, 40), (42, 2), (77, 2), (42, 77), (77, 77))]
    assert pixels == [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    assert frame((40, 80), (80, 80), "contain", "east").bars() == {
        "left": 40,
        "top": 0,
        "right": 0,
        "bottom": 0,
    }
    assert frame((40, 80), (80, 80), "contain").bars() == {"left": 20, "top": 0, "right": 20, "bottom": 0}


def test_stretch_shows_all_four_corners_without_bars() -> None:
    shown = framed(quadrants(40, 80), (80, 80), "stretch")
    pixels = [shown.getpixel(at) for at in ((2, 2), (77, 2), (2, 77), (77, 77))]
    assert pixels == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def test_the_sentence_names_the_sides_and_the_share() -> None:
    assert frame((1080, 1920), (256, 256)).detail() == (
        "1080x1920 is cropped to 256x256: 420 pixels at the top, 420 pixels at the bottom are cut "
        "(44 % of the image)"
    )
    assert frame((100, 50), (64, 64), "contain").detail() == (
        "100x50 is shown whole in 64x64, with bars of 16 pixels at the top, 16 pixels at the bottom"
    )
    assert frame((100, 50), (64, 64), "stretch").detail() == (
        "100x50 is shown whole in 64x64, stretched: 100 % higher"
    )
    assert frame((300, 200), (768, 512)).detail() == "300x200 is shown whole in 768x512"


def test_the_side_that_follows_is_the_nearest_multiple() -> None:
    assert side_like(192, 1920, 1080, multiple=32, least=64) == 352
    assert side_like(64, 100, 1000, multiple=32, least=64) == 64


def test_of_the_shapes_of_a_model_the_nearest_aspect_is_taken() -> None:
    shapes = [(720, 480), (480, 720), (512, 512), (1024, 1024)]
    assert nearest_shape((1080, 1920), shapes) == (480, 720)
    assert nearest_shape((1600, 900), shapes) == (720, 480)
    assert nearest_shape((99, 100), shapes) == (1024, 1024)


def test_a_turned_photo_is_framed_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: the right side of the pixels is the top of the photo
    file = io.BytesIO()
    quadrants(192, 108).save(file, "PNG", exif=exif)
    upright = open_image(file.getvalue())
    assert upright.size == (108, 192)
    assert math.isclose(frame(upright.size, (64, 64)).cut_share(), 1 - 108 / 192)
    top = framed(upright, (64, 64), "cover", "north")
    assert (top.getpixel((2, 2)), top.getpixel((61, 2))) == ((0, 0, 255), (255, 0, 0))
