"""A picture in strips gives what a whole picture gives, and a strip that fails costs no more than itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_vaes import CONFIGS, kwargs_of, latents_of, relative_error, shared
from torch import Tensor

from adaptive.errors import UnsupportedVae
from adaptive.families import family_of
from adaptive.stream import decode_whole, open_decode

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
STRIPWISE = [name for name in CONFIGS if family_of(shared(name)).strip_halo(shared(name)) is not None]
cuts = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=3)


def in_strips(vae: Any, latents: Tensor, schedule: Sequence[tuple[int, int]], **kwargs: Any) -> Tensor:
    """The whole video; the schedule's (latent frames, strips) are taken in turn."""
    steps = cycle(schedule)
    with open_decode(vae, latents, **kwargs) as stream:
        pieces = []
        while not stream.finished:
            pieces.append(stream.step(*next(steps)))
    return torch.cat(pieces, 2)


@pytest.mark.parametrize("name", STRIPWISE)
@settings(max_examples=4, deadline=None)
@given(
    sides=st.tuples(st.integers(2, 7), st.just(2)),
    frames=st.integers(1, 5),
    batch=st.integers(1, 2),
    schedule=cuts,
)
def test_any_strips_give_the_batched_frames(
    name: str, sides: tuple[int, int], frames: int, batch: int, schedule: list[tuple[int, int]]
) -> None:
    vae = shared(name)
    latents, kwargs = latents_of(vae, frames, batch=batch, sides=sides), kwargs_of(vae, batch)
    expected = decode_whole(vae, latents, **kwargs)
    assert relative_error(in_strips(vae, latents, schedule, **kwargs), expected) <= TOLERANCE[torch.float32]


def test_which_families_have_strips() -> None:
    ltx = {"ltx-0.9.0", "ltx-causal", "ltx-0.9.1", "ltx-0.9.5", "ltx2", "ltx2-noncausal"}
    assert set(STRIPWISE) == {"kl", *ltx}
    assert "ltx-noise" not in STRIPWISE  # its noise is drawn for whole pictures


@pytest.mark.parametrize("name", ["ltx-noise", "wan-2.1"])
def test_strips_of_a_vae_without_them_are_refused(name: str) -> None:
    vae = shared(name)
    with open_decode(vae, latents_of(vae, 2)) as stream, pytest.raises(UnsupportedVae, match="strips"):
        stream.step(1, 2)


def test_a_strip_that_fails_is_taken_up_again_in_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = shared("ltx-0.9.0")
    latents = latents_of(vae, 4, sides=(6, 2))
    expected = decode_whole(vae, latents)
    out = vae.decoder.conv_out.conv
    forward, heights = out.forward, []

    def counted(frames: Tensor) -> Tensor:
        heights.append(frames.shape[3])
        if len(heights) == 5:
            raise torch.OutOfMemoryError("scripted")
        result: Tensor = forward(frames)
        return result

    monkeypatch.setattr(out, "forward", counted)
    pieces, failures = [], 0
    with open_decode(vae, latents) as stream:
        while not stream.finished:
            try:
                pieces.append(stream.step(2, 3 if not failures else 6))
            except torch.OutOfMemoryError:
                failures += 1
    monkeypatch.undo()
    assert failures == 1
    assert relative_error(torch.cat(pieces, 2), expected) <= 2e-5
    assert min(heights[5:]) < min(heights[:5])


def test_a_picture_begun_can_be_parked_and_finished_whole() -> None:
    vae = shared("ltx-causal")
    latents = latents_of(vae, 3, sides=(4, 2))
    with open_decode(vae, latents) as stream:
        pieces = [stream.step(1)]
        stream.begin(2)
        assert (stream.position, stream.finished) == (3, False)
        stream.park()
        pieces.append(stream.step(1))
        assert stream.finished
    assert relative_error(torch.cat(pieces, 2), decode_whole(vae, latents)) <= 2e-5
