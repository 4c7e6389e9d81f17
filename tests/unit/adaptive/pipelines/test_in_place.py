"""Decoding within a pipeline's call: the noise that is drawn, and what is left when a decode fails."""

from types import SimpleNamespace

import pytest
import torch
from stream_vaes import build
from torch import Tensor

import adaptive
from adaptive.pipelines.in_place import decoding_in_place
from adaptive.pipelines.recorded_call import RecordedDecode


@pytest.mark.parametrize("frames_per_chunk", [1, 8])
def test_the_noise_of_a_second_decode_follows_that_of_the_first(frames_per_chunk: int) -> None:
    vae = build("ltx-noise")
    z = torch.randn(1, vae.config.latent_channels, 4, 2, 2, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(4)
    with torch.no_grad():
        expected = [vae.decode(z, return_dict=False)[0] for _ in range(2)]
        after = torch.rand(1)

    def decode(call: RecordedDecode) -> Tensor:
        assert call.rng == {}
        with call.replaying_noise():
            return adaptive.decode(vae, call.latents, frames_per_chunk=frames_per_chunk, **call.kwargs)

    torch.manual_seed(4)
    with torch.no_grad(), decoding_in_place(SimpleNamespace(vae=vae), decode):
        found = [vae.decode(z, return_dict=False)[0] for _ in range(2)]
    assert torch.equal(torch.rand(1), after)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    assert "decode" not in vars(vae)


def test_a_decode_that_fails_leaves_the_vae_and_the_noise_as_they_were() -> None:
    vae = build("ltx-noise")
    z = torch.zeros(1, vae.config.latent_channels, 2, 2, 2)

    def fails(_call: RecordedDecode) -> Tensor:
        torch.rand(7)
        raise RuntimeError("no memory")

    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="no memory"),
        decoding_in_place(SimpleNamespace(vae=vae), fails),
    ):
        vae.decode(z)
    assert torch.equal(torch.rand(1), expected)
    assert "decode" not in vars(vae)
