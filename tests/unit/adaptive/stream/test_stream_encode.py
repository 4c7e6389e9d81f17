"""Encoding in chunks, from one tensor or from parts as they are read. For equality see `test_property`."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import Any

import pytest
import torch
from stream_property import ENCODED, video_of
from stream_vaes import build, relative_error, shared

from adaptive.decoding.encoder import encode, stream_encode
from adaptive.errors import UnsupportedVae
from adaptive.stream.encode_stream import EncodeStream

FOLDED = ("kl", "svd")  # diffusers encodes frames of these as a batch of pictures


@pytest.mark.parametrize("name", ENCODED)
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


@pytest.mark.parametrize("name", ["cosmos", "qwenimage", "wan-2.1"])
def test_an_encode_step_that_fails_can_be_tried_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, video = build(name), video_of(name, 4)
    expected = encode(vae, video, posterior="parameters")
    middle, calls = type(vae.encoder.mid_block), count()
    forward = middle.forward

    def fails_now_and_then(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(calls) in (0, 2, 3):
            raise RuntimeError("out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(middle, "forward", fails_now_and_then)
    stream, parts = EncodeStream(vae, iter([video])), []
    while not stream.finished:
        with suppress(RuntimeError):
            parts.append(stream.step(4))
    assert next(calls) > 4
    assert relative_error(torch.cat(parts, 2), expected) <= 2e-5


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
