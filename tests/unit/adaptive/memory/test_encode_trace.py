"""What a long video's encode takes follows from the traces of a few chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stream_vaes import shared
from torch import Tensor

from adaptive.decoding.encode_functions import encode, stream_encode
from adaptive.memory import encode_trace
from adaptive.memory.encode_trace import chunked_bytes, whole_bytes
from adaptive.memory.live_bytes import trace_peak
from adaptive.memory.traced_vae import TracedVae

CASES = [
    ("ltx-causal", 65, 8),
    ("ltx-causal", 49, 4),
    ("ltx-causal", 81, 40),
    ("wan-2.1", 49, 4),
    ("wan-2.1", 49, 12),
    ("magvit", 33, 4),
    ("cosmos", 33, 4),
    ("cogvideox", 73, 8),
    ("kl", 17, 2),
    ("kl", 17, 5),
]


def traced(name: str) -> TracedVae:
    vae = shared(name)
    return TracedVae(type(vae), vae.config, "float32")


def shape_of(frames: int) -> tuple[int, ...]:
    return (1, 3, frames, 64, 64)


def video(frames: int) -> Tensor:
    return torch.empty(shape_of(frames), device="meta")


@pytest.mark.parametrize(("name", "frames", "size"), CASES)
def test_the_bytes_of_chunks_are_those_of_a_whole_trace(name: str, frames: int, size: int) -> None:
    vae = traced(name)
    module, clip = vae.module, video(frames)
    kept = trace_peak(lambda: encode(module, clip, frames_per_chunk=size, posterior="parameters"))
    assert chunked_bytes(vae, shape_of(frames), size, streamed=False) == pytest.approx(
        kept.peak_bytes, rel=0.01
    )

    def stream() -> None:
        parts = (part.clone() for part in torch.split(clip, vae.traits.temporal_ratio, 2))
        source: Any = clip if name == "cogvideox" else parts  # whose first chunk depends on the length
        for latents in stream_encode(module, source, frames_per_chunk=size, posterior="parameters"):
            del latents

    if name != "cogvideox":
        found = chunked_bytes(vae, shape_of(frames), size, streamed=True)
        assert found == pytest.approx(trace_peak(stream).peak_bytes, rel=0.01)


@pytest.mark.parametrize(("name", "frames"), [("wan-2.1", 49), ("wan-2.2", 21), ("kl", 9), ("ltx-causal", 9)])
def test_the_bytes_of_one_call_are_those_of_a_whole_trace(name: str, frames: int) -> None:
    vae = traced(name)
    module, clip = vae.module, video(frames)
    exact = trace_peak(lambda: encode(module, clip, posterior="parameters")).peak_bytes
    assert whole_bytes(vae, shape_of(frames)) == pytest.approx(exact, rel=0.01)


def test_a_long_video_is_not_traced_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    steps, whole = encode_trace._steps, encode_trace._whole_peak

    def noted_steps(vae: TracedVae, shape: tuple[int, ...], size: int, streamed: bool) -> Any:
        seen.append(shape[2])
        return steps(vae, shape, size, streamed)

    def noted_whole(vae: TracedVae, shape: tuple[int, ...]) -> int:
        seen.append(shape[2])
        return whole(vae, shape)

    monkeypatch.setattr(encode_trace, "_steps", noted_steps)
    monkeypatch.setattr(encode_trace, "_whole_peak", noted_whole)
    vae, shape = traced("wan-2.1"), (1, 3, 81, 32, 32)
    whole_bytes(vae, shape)
    chunked_bytes(vae, shape, 4, streamed=False)
    chunked_bytes(vae, shape, 12, streamed=True)
    assert seen == [9, 13, 17, 45]
