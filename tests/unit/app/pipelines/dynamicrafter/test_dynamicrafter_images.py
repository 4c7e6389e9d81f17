"""Pixels in and out, conditioning latents and guidance."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from app.pipelines.dynamicrafter.guidance import Guidance, conditioning_latents, guide
from app.pipelines.dynamicrafter.images import clip_pixels, load_images, to_output


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_the_right_size_is_only_scaled() -> None:
    pixels = _noise(64, 128)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 * 2 - 1
    unit = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    for image in (
        Image.fromarray(pixels),
        pixels,
        unit,
        unit * 2 - 1,
        unit.numpy().transpose(1, 2, 0),
        [pixels],
    ):
        found = load_images(image, 128, 64)
        assert found.shape == (1, 3, 64, 128)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (64, 200, (36, 0, 164, 64)),  # too wide: the sides go
        (100, 128, (0, 18, 128, 82)),  # too high: top and bottom go
    ],
)
def test_what_overhangs_is_cropped_about_the_centre(height: int, width: int, box: tuple[int, ...]) -> None:
    image = Image.fromarray(_noise(height, width))
    expected = load_images(image.crop(box), 128, 64)
    assert torch.equal(load_images(image, 128, 64), expected)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    torch.testing.assert_close(load_images(tensor, 128, 64), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(30, 20), (640, 480), (640, 641), (127, 2000), (1, 1)])
def test_any_image_covers_the_frame_without_borders(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (255, 255, 255))
    for source in (image, torch.ones(3, size[1], size[0])):
        found = load_images(source, 128, 64)
        assert found.shape == (1, 3, 64, 128)
        assert found.min() > 0.999


def test_integer_tensors_are_refused_rather_than_guessed_at() -> None:
    with pytest.raises(ValueError, match="uint8"):
        load_images(torch.zeros(3, 8, 8, dtype=torch.uint8), 64, 64)


def test_clip_sees_the_whole_image_shrunk_to_its_square() -> None:
    """Of a smooth image a corner-aligned shrink keeps the corners, and the mean is CLIP's."""
    ramp = torch.linspace(-1, 1, 512).view(1, 1, 1, -1).expand(1, 3, 320, 512)
    found = clip_pixels(ramp, 224)
    assert found.shape == (1, 3, 224, 224)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), (0.5 - mean) / std, atol=1e-3, rtol=0)
    unit = found[0, 0] * std[0] + mean[0]
    torch.testing.assert_close(unit[:, 1:-1], unit[:1, 1:-1].expand(224, 222))
    assert (unit[0].diff() > 0).all()


def test_clip_pixels_blur_only_what_is_shrunk() -> None:
    small = torch.rand(1, 3, 32, 32) * 2 - 1
    enlarged = F.interpolate(small, (64, 64), mode="bicubic", align_corners=True)
    black = clip_pixels(torch.full((1, 3, 8, 8), -1.0), 64)
    white = clip_pixels(torch.ones(1, 3, 8, 8), 64)
    torch.testing.assert_close(clip_pixels(small, 64), black + (white - black) * (enlarged + 1) / 2)

    stripes = torch.ones(1, 1, 448, 448) * (torch.arange(448) % 2 * 2.0 - 1)
    found = clip_pixels(stripes.expand(1, 3, 448, 448), 112)
    assert found.std(dim=(2, 3)).max() < 0.1


def test_a_single_image_conditions_every_frame() -> None:
    first = torch.randn(2, 4, 3, 5)
    found = conditioning_latents(first, None, 6)
    assert found.shape == (2, 4, 6, 3, 5)
    assert all(torch.equal(found[:, :, frame], first) for frame in range(6))


def test_two_images_condition_only_the_first_and_the_last_frame() -> None:
    first, last = torch.randn(2, 2, 4, 3, 5)
    found = conditioning_latents(first, last, 16)
    assert torch.equal(found[:, :, 0], first)
    assert torch.equal(found[:, :, 15], last)
    assert not found[:, :, 1:15].any()


def test_guidance_moves_away_from_the_unconditional_prediction() -> None:
    uncond, cond = torch.randn(2, 2, 4, 3, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(guide(uncond, cond, 7.5, 0.0), 7.5 * cond - 6.5 * uncond)
    torch.testing.assert_close(guide(uncond, cond, 1.0, 0.7), cond)


def test_rescale_gives_back_its_share_of_each_videos_own_spread() -> None:
    uncond, cond = torch.randn(2, 2, 4, 3, 5, 7, dtype=torch.float64)
    cond[1] *= 3
    plain = guide(uncond, cond, 7.5, 0.0)
    for index in range(2):
        full = guide(uncond, cond, 7.5, 1.0)[index]
        torch.testing.assert_close(full.std(), cond[index].std())
        expected = 0.7 * plain[index] * cond[index].std() / plain[index].std() + 0.3 * plain[index]
        torch.testing.assert_close(guide(uncond, cond, 7.5, 0.7)[index], expected)


@pytest.mark.parametrize(
    ("arguments", "match"), [((7.5, 0.7, 3), "guidance_passes is 3"), ((7.5, 1.5), "guidance_rescale is 1.5")]
)
def test_impossible_guidance_is_refused(arguments: tuple[float, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Guidance(*arguments)  # type: ignore[arg-type]


def test_frames_come_out_in_every_form() -> None:
    frames = torch.tensor([-2.0, -1.0, 0.0, 0.999, 3.0]).view(1, 1, 5, 1, 1).expand(1, 3, 5, 2, 4)
    unit = to_output(frames, "pt")
    assert unit.shape == (1, 5, 3, 2, 4)
    assert unit[0, :, 0, 0, 0].tolist() == pytest.approx([0, 0, 0.5, 0.9995, 1])
    array = to_output(frames, "np")
    assert array.shape == (1, 5, 2, 4, 3)
    ((*images,),) = to_output(frames, "pil")
    assert [image.size for image in images] == [(4, 2)] * 5
    # Truncated, not rounded: 127.5 and 254.87.
    assert [image.getpixel((0, 0))[0] for image in images] == [0, 0, 127, 254, 255]
