"""Approximate parts are laid where they belong, are honest about their seams, and can be taken up again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stream_vaes import build, latents_of, relative_error, shared
from torch import Tensor
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from adaptive.stream import BlendedTiles, IndependentChunks, decode_whole
from adaptive.stream.seams import SeamScore
from adaptive.types import SpatialTiles


def drained(stream: BlendedTiles | IndependentChunks, latent_frames: int = 1) -> Tensor:
    pieces = []
    while not stream.finished:
        pieces.append(stream.step(latent_frames).clone())
    return torch.cat(pieces, 2)


@pytest.fixture
def enlarging_vae() -> Any:
    """A VAE whose decode only enlarges: every tile is right, so any error is one of place or weight."""
    vae = build("kl")

    def decode(latents: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        return (interpolate(latents[:, :3], scale_factor=2.0),)

    vae.decode = decode
    return vae


def test_tiles_that_agree_are_blended_into_exactly_the_whole(enlarging_vae: Any) -> None:
    latents = latents_of(enlarging_vae, 3, sides=(131, 70))
    expected = decode_whole(enlarging_vae, latents)
    stream = BlendedTiles(enlarging_vae, latents, SpatialTiles(2, 1))
    assert relative_error(drained(stream), expected) <= 1e-6
    assert stream.seam_score == pytest.approx(0, abs=0.1)


def test_frames_that_were_given_already_are_not_given_again(enlarging_vae: Any) -> None:
    latents = latents_of(enlarging_vae, 4, sides=(128, 8))
    expected = decode_whole(enlarging_vae, latents)[:, :, 3:]
    stream = BlendedTiles(enlarging_vae, latents, SpatialTiles(2, 1), done=3)
    assert relative_error(drained(stream, 2), expected) <= 1e-6


class FailsOnce(TorchFunctionMode):
    """Runs out of memory at one call of torch, the `call`-th since the start."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = call

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("scripted")
        return func(*args, **(kwargs or {}))


def drained_with_a_failure(stream: BlendedTiles, call: int) -> tuple[Tensor, bool]:
    """The video, where blending fails once at this call of torch, and whether it failed."""
    pieces, failed, steps = [], False, 0
    blend, mode = stream._blend, FailsOnce(call)

    def fragile(*args: Any) -> None:
        with mode:
            blend(*args)

    stream._blend = fragile  # type: ignore[method-assign]
    while not stream.finished:
        steps += 1
        assert steps < 100, "the stream does not end"
        try:
            pieces.append(stream.step(2).clone())
        except torch.OutOfMemoryError:
            failed = True
    return torch.cat(pieces, 2), failed


@pytest.mark.parametrize("name", ["kl", "ltx-causal"])
def test_a_failure_at_any_place_of_blending_costs_a_retry_and_not_a_frame(name: str) -> None:
    vae = shared(name)
    latents = latents_of(vae, 2, sides={"kl": (130, 4), "ltx-causal": (8, 2)}[name])
    expected = drained(BlendedTiles(vae, latents, SpatialTiles(2, 1)), 2)
    for call in range(1, 200, 3):
        stream = BlendedTiles(vae, latents, SpatialTiles(2, 1))
        video, failed = drained_with_a_failure(stream, call)
        assert relative_error(video, expected) <= 1e-6
        if not failed:
            break
    assert call > 20, "it failed at every call"


@pytest.mark.parametrize("given", [1, 3])
def test_a_tile_with_a_wrong_number_of_frames_is_an_error_and_not_an_endless_decode(
    enlarging_vae: Any, given: int
) -> None:
    decode = enlarging_vae.decode
    enlarging_vae.decode = lambda latents, **named: (decode(latents, **named)[0].repeat(2, 1, 1, 1)[:given],)
    stream = BlendedTiles(enlarging_vae, latents_of(enlarging_vae, 2, sides=(128, 8)), SpatialTiles(2, 1))
    with pytest.raises(AssertionError, match=f"{given} of 2 video frames"):
        drained(stream, 2)


@pytest.mark.parametrize("kind", [BlendedTiles, IndependentChunks])
def test_a_step_of_no_frames_is_refused(kind: Any) -> None:
    vae = shared("svd")
    more = (SpatialTiles(1, 1),) if kind is BlendedTiles else ()
    stream = kind(vae, latents_of(vae, 2), *more)
    with pytest.raises(ValueError, match="latent_frames"):
        stream.step(0)


def test_tiles_of_a_real_decoder_are_close_to_the_whole_away_from_their_borders() -> None:
    vae = shared("ltx-causal")
    latents = latents_of(vae, 2, sides=(8, 4))
    expected = decode_whole(vae, latents)
    stream = BlendedTiles(vae, latents, SpatialTiles(2, 1))
    frames = drained(stream)
    rows = ((frames - expected).abs().amax((0, 1, 2, 4)) / expected.abs().max()).tolist()
    assert max(rows) > 1e-3, "approximate, and not by chance exact"
    assert max(rows[:16] + rows[-16:]) < 0.5 * max(rows)
    assert stream.seam_score is not None


def test_each_independent_chunk_equals_its_decode_alone() -> None:
    vae = shared("svd")
    latents = latents_of(vae, 4)
    stream = IndependentChunks(vae, latents)
    frames = drained(stream, 2)
    alone = torch.cat([decode_whole(vae, latents[:, :, :2]), decode_whole(vae, latents[:, :, 2:])], 2)
    assert torch.equal(frames, alone)
    assert relative_error(frames, decode_whole(vae, latents)) > 1e-3
    assert stream.seam_score is not None


def test_the_score_tells_edges_from_blur_and_from_nothing() -> None:
    noise = torch.rand(1, 3, 2, 64, 16, generator=torch.Generator().manual_seed(0))
    edge, blurred = noise.clone(), noise.clone()
    edge[:, :, :, 32:] += 3
    blurred[:, :, :, 28:36] = blurred[:, :, :, 28:36].mean()
    scores = []
    for frames in (noise, edge, blurred):
        score = SeamScore(rows=[32], half_width=4)
        assert score.value is None
        score.add_spatial_seams(frames)
        scores.append(score.value or 0)
    assert scores[0] == pytest.approx(0, abs=0.15)
    assert scores[1] > 0.5
    assert scores[2] < -0.5


def test_a_jump_between_chunks_shows_in_the_score() -> None:
    ramp = torch.arange(4.0).reshape(1, 1, 4, 1, 1).expand(1, 3, 4, 8, 8)
    score = SeamScore()
    score.add_temporal_seam(ramp[:, :, :2])
    score.add_temporal_seam(ramp[:, :, 2:] + 2)
    assert score.value == pytest.approx(2)
