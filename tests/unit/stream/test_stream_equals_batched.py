"""Streamed decoding gives what one call gives, whatever the chunks."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_vaes import (
    CONFIGS,
    LTX,
    build,
    kwargs_of,
    latents_of,
    relative_error,
    run,
    shared,
    streamed,
)
from torch import Tensor, nn

from adaptive.errors import UnsupportedVae
from adaptive.stream import decode_whole, open_decode, self_test

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
schedules = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@pytest.fixture
def double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' RMSNorm takes its variance in float32, which would hide errors below 1e-7 in float64."""

    def forward(self: RMSNorm, frames: Tensor) -> Tensor:
        return frames * torch.rsqrt(frames.pow(2).mean(-1, keepdim=True) + self.eps)

    monkeypatch.setattr(RMSNorm, "forward", forward)


def check(name: str, dtype: torch.dtype, frames: int, batch: int, schedule: list[int]) -> None:
    vae = shared(name, dtype)
    latents, kwargs = latents_of(vae, frames, batch=batch), kwargs_of(vae, batch)
    torch.manual_seed(3)
    expected = decode_whole(vae, latents, **kwargs)
    torch.manual_seed(3)
    actual = streamed(vae, latents, schedule, **kwargs)
    assert relative_error(actual, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=5, deadline=None)
@given(frames=st.integers(1, 9), batch=st.integers(1, 2), schedule=schedules)
def test_any_schedule_gives_the_batched_frames_in_single_precision(
    name: str, frames: int, batch: int, schedule: list[int]
) -> None:
    check(name, torch.float32, frames, batch, schedule)


@pytest.mark.usefixtures("double_norms")
@pytest.mark.parametrize("name", LTX)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.integers(1, 9), batch=st.integers(1, 2), schedule=schedules)
def test_any_schedule_gives_the_batched_frames_to_twelve_digits_in_double_precision(
    name: str, frames: int, batch: int, schedule: list[int]
) -> None:
    check(name, torch.float64, frames, batch, schedule)


@pytest.mark.parametrize(("name", "kwargs"), [("kl", {}), ("svd", {"num_frames": 3})])
def test_frames_folded_in_the_batch_are_one_video(name: str, kwargs: dict[str, int]) -> None:
    vae = shared(name)
    folded = latents_of(vae, 3)[0].transpose(0, 1)
    with torch.no_grad():
        own = vae.decode(folded, **kwargs).sample
    expected = own.transpose(0, 1)[None]
    assert relative_error(decode_whole(vae, folded, **kwargs), expected) <= 1e-6
    assert relative_error(streamed(vae, folded, [2, 1], **kwargs), expected) <= 2e-5


def test_channels_last_weights_stream_too() -> None:
    vae = build("ltx-0.9.0").to(memory_format=torch.channels_last_3d)
    latents = latents_of(vae, 4).to(memory_format=torch.channels_last_3d)
    assert relative_error(streamed(vae, latents, [1, 2]), decode_whole(vae, latents)) <= 2e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adds_no_error_of_its_own(dtype: torch.dtype) -> None:
    exact = shared("ltx-0.9.0")
    half = shared("ltx-0.9.0", dtype)
    latents = latents_of(exact, 5).to(dtype)
    reference = decode_whole(exact, latents.float())
    own = relative_error(decode_whole(half, latents).float(), reference)
    assert relative_error(streamed(half, latents, [1, 2]).float(), reference) <= 1.1 * own


@pytest.mark.parametrize("name", LTX)
def test_frames_come_in_the_chunk_s_own_measure(name: str) -> None:
    vae = shared(name)
    ratio = 2 ** sum(vae.config.decoder_spatio_temporal_scaling)
    with open_decode(vae, latents_of(vae, 9), **kwargs_of(vae)) as stream:
        counts = [frames.shape[2] for frames in run(stream, [2])]
    assert max(counts) <= 2 * ratio
    assert sum(counts) == 8 * ratio + 1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_without_finished_frames_gives_an_empty_tensor_of_the_video_s_sides(name: str) -> None:
    vae = shared(name)
    whole = decode_whole(vae, latents_of(vae, 3), **kwargs_of(vae))
    with open_decode(vae, latents_of(vae, 3), **kwargs_of(vae)) as stream:
        for frames in run(stream, [1]):
            assert frames.shape[:2] + frames.shape[3:] == whole.shape[:2] + whole.shape[3:]
            assert frames.dtype == whole.dtype


@pytest.mark.parametrize("name", CONFIGS)
def test_the_self_test_passes_and_leaves_the_random_state_alone(name: str) -> None:
    before = torch.get_rng_state()
    self_test(shared(name))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_self_test_refuses_a_vae_in_which_something_unseen_mixes_frames() -> None:
    vae = shared("ltx-causal")

    def mix(_module: nn.Module, _args: object, frames: Tensor) -> Tensor:
        return frames + frames.mean(2, keepdim=True)

    hook = vae.decoder.mid_block.register_forward_hook(mix)
    try:
        with pytest.raises(UnsupportedVae, match="self-test error"):
            self_test(vae)
    finally:
        hook.remove()


def test_the_self_test_refuses_a_vae_whose_streaming_breaks() -> None:
    vae = shared("ltx-0.9.0")

    def insist(_module: nn.Module, _args: object, frames: Tensor) -> None:
        if frames.shape[2] < 4:
            raise RuntimeError("too few frames")

    hook = vae.decoder.mid_block.register_forward_hook(insist)
    try:
        with pytest.raises(UnsupportedVae, match="too few frames"):
            self_test(vae)
    finally:
        hook.remove()


def test_noise_is_drawn_once_and_is_the_batched_call_s() -> None:
    vae = shared("ltx-noise")
    latents = latents_of(vae, 4)
    torch.manual_seed(11)
    expected = decode_whole(vae, latents)
    after = torch.get_rng_state()
    torch.manual_seed(11)
    with open_decode(vae, latents) as stream:
        first = stream.step(1)
        assert torch.equal(torch.get_rng_state(), after)
        torch.manual_seed(99)  # what others draw between the steps changes nothing
        others = torch.get_rng_state()
        rest = list(run(stream, [1]))
        assert torch.equal(torch.get_rng_state(), others)
    assert relative_error(torch.cat([first, *rest], 2), expected) <= 2e-5
    torch.manual_seed(12)
    assert relative_error(decode_whole(vae, latents), expected) > 1e-3
