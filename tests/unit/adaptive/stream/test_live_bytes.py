"""Predicted live bytes against the tensor accounting of real runs, and what families claim of them.

`tests/bench/prediction.py` makes the whole table; here is one case of each family.
"""

import json
from collections import deque
from itertools import product
from pathlib import Path

import diffusers
import pytest
import torch
from stream_vaes import build, kwargs_of

from adaptive.families import family_of
from adaptive.functions import stream_decode
from adaptive.memory.live_bytes import LiveBytes
from adaptive.memory.profile_trace import predict_peak, profile_of, trace_bytes
from adaptive.memory.traced_vae import TRACED, TracedVae
from adaptive.types import Cut, LatentShape

CONFIGURATIONS = Path(__file__).parents[4] / "app/pipelines/published/configurations"
WHOLE = 99
SWEPT = ("hunyuanvideo-1.0", "svd")
SINGLE = (
    ("ltx-0.9.5", 2),
    ("wan-2.1", WHOLE),
    ("wan-2.2", 1),
    ("ltx2", 1),
    ("cogvideox", 2),
    ("hunyuanvideo-1.5", 1),
    ("mochi", WHOLE),
    ("cosmos", 1),
    ("qwenimage", 1),
    ("magvit", 2),
    ("kl", 1),
)
CASES = (*SINGLE, *product(SWEPT, (WHOLE, 1, 2)))
PROPORTIONAL = ("ltx-0.9.0", "cogvideox", "magvit", "kl")


@pytest.mark.parametrize(("name", "frames_per_chunk"), CASES)
def test_live_bytes_of_every_family_are_predicted_within_two_per_cent(
    name: str, frames_per_chunk: int
) -> None:
    vae = build(name)
    latents = torch.randn(1, profile_of(vae).traits.latent_channels, 3, 3, 4)
    live = LiveBytes()
    with live.active():
        stream = stream_decode(vae, latents, frames_per_chunk=frames_per_chunk, **kwargs_of(vae))
        deque(stream, maxlen=0)
    predicted = predict_peak(vae, tuple(latents.shape), frames_per_chunk=frames_per_chunk)
    assert predicted.live_bytes == pytest.approx(live.peak_bytes, rel=0.02)
    assert predicted.host_bytes == 0


@pytest.mark.parametrize("name", PROPORTIONAL)
def test_families_that_claim_it_need_bytes_exactly_in_proportion_to_the_area(name: str) -> None:
    traced = _traced(name)
    assert family_of(traced.module).proportional
    at_sizes = [trace_bytes(traced, 3, 1, size).device for size in ((4, 6), (7, 5), (16, 24))]
    assert max(at_sizes) == pytest.approx(min(at_sizes), rel=1e-4)


def test_borders_of_the_published_ltx2_count_at_every_size() -> None:
    """Its reflected borders are copies, which weigh more in a small picture."""
    traced = published_vae("ltx-2")
    small, large = (trace_bytes(traced, 7, 2, size).device for size in ((4, 6), (16, 24)))
    assert small > 1.01 * large
    for size, real in (((4, 6), small), ((16, 24), large)):
        predicted = predict_peak(traced.module, (1, 128, 7, *size), frames_per_chunk=2)
        assert predicted.live_bytes == pytest.approx(real * size[0] * size[1], rel=1e-4)


@pytest.mark.parametrize("name", ["wan-2.2", "mochi"])
def test_padded_borders_are_why_other_families_are_traced_at_the_very_size(name: str) -> None:
    traced = _traced(name)
    assert not family_of(traced.module).proportional
    small, usual, large = (trace_bytes(traced, 3, 1, size).device for size in ((4, 6), TRACED, (60, 104)))
    assert small > 1.01 * large
    assert usual == pytest.approx(large, rel=0.005)


@pytest.mark.parametrize("name", SWEPT)
def test_what_a_sweep_parks_counts_where_it_lies(name: str) -> None:
    profile = profile_of(build(name))
    shape, cut = LatentShape(1, profile.traits.latent_channels, 6, 32, 48), Cut(1)
    on_host = profile.cut_bytes(shape, cut, on_host=True)
    on_device, parked = profile.cut_bytes(shape, cut), profile.parked_bytes(shape, cut)
    assert on_device < on_host
    assert max(on_device, parked) <= on_host <= on_device + parked
    assert profile.parked_bytes(shape, Cut(6)) == 0


def published_vae(name: str) -> TracedVae:
    """The VAE of a published configuration, without weights."""
    document = json.loads((CONFIGURATIONS / f"{name}.json").read_text())["components"]["vae"]
    return TracedVae(getattr(diffusers, document["class"][1]), document["config"], "bfloat16")


def _traced(name: str) -> TracedVae:
    vae = build(name)
    return TracedVae(type(vae), vae.config, "float32")
