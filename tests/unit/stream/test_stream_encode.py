"""Encoding in chunks gives what one call gives, from one tensor or from parts as they are read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_vaes import build, relative_error, shared
from torch import Tensor

from adaptive.encoder import encode, stream_encode
from adaptive.errors import UnsupportedVae
from adaptive.families import traits_of

NAMES = [
    *("ltx-0.9.0", "ltx-0.9.5", "ltx2", "wan-2.1", "wan-2.2", "cogvideox", "kl", "svd"),
    *("hunyuanvideo-1.5", "mochi", "cosmos", "cosmos-rearrange", "qwenimage", "magvit"),
]
FOLDED = ("kl", "svd")  # diffusers encodes frames of these as a batch of pictures


def video_of(name: str, latent_frames: int, batch: int = 1) -> Tensor:
    vae = shared(name)
    traits = traits_of(type(vae).__name__, vae.config)
    ratio = vae.config.get("spatial_compression_ratio") or traits.spatial_ratio
    generator = torch.Generator().manual_seed(1)
    frames = traits.video_frames(latent_frames)
    # Mochi's norms over single channels of two pixels would magnify rounding a thousandfold.
    sides = (3 * ratio, 4 * ratio) if name == "mochi" else (ratio, 2 * ratio)
    return torch.rand((batch, 3, frames, *sides), generator=generator) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4, deadline=None)
@given(latent_frames=st.integers(1, 5), batch=st.integers(1, 2), chunk=st.integers(1, 20))
def test_any_chunk_size_gives_the_latents_of_one_call(
    name: str, latent_frames: int, batch: int, chunk: int
) -> None:
    vae, video = shared(name), video_of(name, latent_frames, batch)
    expected = encode(vae, video, posterior="parameters")
    actual = encode(vae, video, frames_per_chunk=chunk, posterior="parameters")
    assert relative_error(actual, expected) <= 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_mode_is_diffusers_own(name: str) -> None:
    vae, video = shared(name), video_of(name, 3)
    folded = video.transpose(1, 2).flatten(0, 1) if name in FOLDED else video
    with torch.no_grad():
        expected = vae.encode(folded).latent_dist.mode()
    if name in FOLDED:
        expected = expected.transpose(0, 1)[None]
    assert relative_error(encode(vae, video, frames_per_chunk=3), expected) <= 2e-5


@pytest.mark.parametrize("lengths", [(9, 8), (1, 1, 15), (5, 7, 5), (17,)])
def test_parts_may_have_any_lengths(lengths: tuple[int, ...]) -> None:
    vae, video = shared("ltx-0.9.5"), video_of("ltx-0.9.5", 3)
    parts = stream_encode(vae, iter(video.split(list(lengths), 2)), frames_per_chunk=8)
    assert relative_error(torch.cat(list(parts), 2), encode(vae, video)) <= 2e-5


@pytest.mark.parametrize("chunk", [None, 4])
def test_a_number_of_frames_that_cannot_be_encoded_is_refused(chunk: int | None) -> None:
    vae = shared("wan-2.1")
    with pytest.raises(ValueError, match="4k\\+1 frames, not 6"):
        encode(vae, video_of("wan-2.1", 3)[:, :, :6], frames_per_chunk=chunk)


def test_a_non_causal_encoder_is_refused() -> None:
    vae = build("ltx-0.9.0")
    vae.register_to_config(encoder_causal=False)
    with pytest.raises(UnsupportedVae, match="non-causal"):
        stream_encode(vae, video_of("ltx-0.9.0", 2), frames_per_chunk=4)


@pytest.mark.parametrize(("chunk", "posterior"), [(0, "mode"), (4, "median")])
def test_options_out_of_range_are_refused_with_their_value(chunk: int, posterior: str) -> None:
    vae, video = shared("ltx-0.9.0"), video_of("ltx-0.9.0", 2)
    with pytest.raises(ValueError, match=r"0|median"):
        stream_encode(vae, video, frames_per_chunk=chunk, posterior=posterior)
