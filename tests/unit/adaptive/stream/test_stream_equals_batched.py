"""Streamed decoding beside one call: layouts, chunk sizes, the self-test, noise. For equality see
`test_property`.
"""

from __future__ import annotations

import pytest
import torch
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
