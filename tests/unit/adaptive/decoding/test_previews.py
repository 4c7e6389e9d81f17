"""Pictures before the decode: which, how cheap, and that they change nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.decoding.previews import LEAST_SECONDS, TIME_SHARE, WORK_SHARE, make_previews, plan_previews
from adaptive.memory.speed import SpeedModel
from adaptive.testing import ScriptedProbe, small_ltx_vae
from adaptive.types import LatentShape, VaeTraits

LTX = VaeTraits("ltx", "AutoencoderKLLTXVideo", 128, 32, 8, True, True, False)
SD = VaeTraits("kl", "AutoencoderKL", 4, 8, 1, False, True, True)


@pytest.mark.parametrize(
    ("traits", "shape", "expected"),
    [
        (LTX, (7, 16, 24), (0, 6, 1, 2, 3, 4, 5)),  # 512 x 768: a sixteenth each
        (LTX, (16, 24, 40), (0, 15, 2, 4, 6, 9, 11, 13)),
        (LTX, (2, 8, 8), (0, 1)),
        (LTX, (4, 3, 3), None),  # too small to be made smaller, and one of four is a quarter
        (LTX, (1, 16, 24), None),
        (SD, (16, 72, 128), (0, 15, 2, 4, 6, 9, 11, 13)),
    ],
)
def test_first_last_and_every_kth_frame_are_shown_for_a_quarter_of_the_work_at_most(
    traits: VaeTraits, shape: tuple[int, int, int], expected: tuple[int, ...] | None
) -> None:
    plan = plan_previews(traits, LatentShape(1, traits.latent_channels, *shape))
    if expected is None:
        assert plan is None
    else:
        assert plan is not None
        assert plan.latent_frames == expected
        assert plan.work_share <= WORK_SHARE


@pytest.mark.parametrize(
    ("pass_seconds", "frames_per_chunk", "expected"),
    [
        (0.0, 16, (0, 15, 2, 4, 6, 9, 11, 13)),
        (1.0, 1, (0, 15, 5, 10)),  # 17 passes take 17 s, and each picture one
        (1.0, 2, (0, 15)),
        (0.4, 16, (0,)),
        (1.0, 16, None),  # a picture takes as long as the whole decode
        (0.09, 16, (0, 15, 4, 8, 11)),  # a decode so short leaves pictures half a second
    ],
)
def test_pictures_are_planned_for_a_quarter_of_the_predicted_time_at_most(
    pass_seconds: float, frames_per_chunk: int, expected: tuple[int, ...] | None
) -> None:
    shape = LatentShape(1, 128, 16, 24, 40)
    speed = SpeedModel(work_seconds=1e-9, step_seconds=pass_seconds)
    plan = plan_previews(LTX, shape, speed, frames_per_chunk)
    assert (None if plan is None else plan.latent_frames) == expected
    if plan is not None:
        decode_seconds = speed.seconds(shape, frames_per_chunk)
        assert plan.limit_seconds == max(LEAST_SECONDS, TIME_SHARE * decode_seconds)


@pytest.fixture(scope="module")
def noisy_vae() -> Any:
    """Its decoder draws random numbers, which previews must leave alone."""
    return small_ltx_vae(
        decoder_block_out_channels=(8, 8, 8, 8), decoder_inject_noise=(True, False, True, True, True)
    )


def test_previews_are_small_pictures_of_the_frames_they_name_and_change_no_pixel(noisy_vae: Any) -> None:
    latents = torch.randn(1, 8, 6, 8, 12, generator=torch.Generator().manual_seed(1))
    plan = plan_previews(LTX, LatentShape(*latents.shape))
    assert plan is not None
    decoder = AdaptiveDecoder(noisy_vae, probe=ScriptedProbe([2**40]))
    with torch.no_grad():
        torch.manual_seed(3)
        expected = torch.cat(list(decoder.frames(latents)), 2)
        torch.manual_seed(3)
        shown = list(make_previews(noisy_vae, latents, plan, {}, clock=lambda: 0.0))
        actual = torch.cat(list(decoder.frames(latents)), 2)
    assert torch.equal(actual, expected)
    assert [number for number, _ in shown] == [0, 33, *(1 + 8 * (n - 1) for n in plan.latent_frames[2:])]
    sides = {tuple(picture.shape) for _, picture in shown}
    assert sides == {(3, 8 * 32 // plan.factor, 12 * 32 // plan.factor)}


def test_a_device_without_room_for_previews_gets_none_and_no_error(
    noisy_vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise torch.OutOfMemoryError("scripted")

    monkeypatch.setattr(noisy_vae, "decode", full)
    latents = torch.randn(1, 8, 6, 8, 12)
    plan = plan_previews(LTX, LatentShape(*latents.shape))
    assert plan is not None
    assert list(make_previews(noisy_vae, latents, plan, {})) == []


@pytest.mark.parametrize(("limit_seconds", "made"), [(0.5, 1), (2.5, 2), (3.0, 3), (60.0, 6)])
def test_no_picture_is_begun_that_would_outlast_the_limit(
    noisy_vae: Any, limit_seconds: float, made: int
) -> None:
    now = [0.0]
    latents = torch.randn(1, 8, 6, 8, 12)
    plan = plan_previews(LTX, LatentShape(*latents.shape))
    assert plan is not None
    plan = replace(plan, limit_seconds=limit_seconds)
    shown = 0
    for _ in make_previews(noisy_vae, latents, plan, {}, clock=lambda: now[0]):
        now[0] += 1.0  # what the consumer does with a picture counts, too
        shown += 1
    assert shown == made
