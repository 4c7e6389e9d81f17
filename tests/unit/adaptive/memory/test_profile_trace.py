"""Predicted live bytes against tensor accounting of real runs, and profiles as JSON."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive.errors import UnsupportedVae
from adaptive.functions import stream_decode
from adaptive.memory.live_bytes import LiveBytes
from adaptive.memory.profile import Curve, MemoryProfile
from adaptive.memory.profile_trace import predict_peak, profile_of, trace_profile
from adaptive.memory.traced_vae import config_digest
from adaptive.testing import small_ltx_vae
from adaptive.types import LatentShape

SHAPES = [(1, 8, 3, 4, 6), (1, 8, 7, 3, 5), (2, 8, 5, 6, 2)]


@pytest.fixture(scope="module", params=["causal", "not_causal"])
def vae(request: pytest.FixtureRequest) -> Any:
    return small_ltx_vae(decoder_causal=request.param == "causal")


def counted(vae: Any, shape: tuple[int, ...], frames_per_chunk: int) -> int:
    """Peak of live bytes of a real streamed decode whose consumer keeps nothing."""
    latents = torch.randn(shape)
    live = LiveBytes()
    with live.active():
        deque(stream_decode(vae, latents, frames_per_chunk=frames_per_chunk), maxlen=0)
    return live.peak_bytes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frames_per_chunk", [1, 2, 4, 99])
def test_predicted_live_bytes_are_within_two_per_cent_of_a_real_run(
    vae: Any, shape: tuple[int, ...], frames_per_chunk: int
) -> None:
    real = counted(vae, shape, frames_per_chunk)
    predicted = predict_peak(vae, shape, frames_per_chunk=frames_per_chunk)
    assert predicted.live_bytes == pytest.approx(real, rel=0.02)
    assert predicted.live_bytes <= predicted.expected_bytes <= predicted.upper_bytes


@pytest.mark.parametrize("frames_per_chunk", [1, 2, 9])
def test_ltx_needs_bytes_exactly_in_proportion_to_its_area(frames_per_chunk: int) -> None:
    vae = small_ltx_vae()
    sizes = [(2, 3), (4, 4), (6, 5)]
    per_pixel = {counted(vae, (1, 8, 4, h, w), frames_per_chunk) / (h * w) for h, w in sizes}
    assert len(per_pixel) == 1


@pytest.mark.parametrize("latent_frames", [3, 6, 10, 20])
@pytest.mark.parametrize("frames_per_chunk", [1, 2, 3, 4, 5, 99])
def test_a_stored_profile_is_close_to_a_trace_at_the_very_shape_and_hardly_ever_below(
    latent_frames: int, frames_per_chunk: int
) -> None:
    vae = small_ltx_vae()
    shape = LatentShape(1, 8, latent_frames, 16, 24)
    exact = predict_peak(vae, shape, frames_per_chunk=frames_per_chunk).live_bytes
    stored = profile_of(vae).live_bytes(shape, frames_per_chunk)
    assert 0.96 * exact <= stored <= 1.2 * exact


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_needs_more_than_half_where_norms_compute_in_float32(dtype: str) -> None:
    vae = small_ltx_vae()
    full = predict_peak(vae, (1, 8, 7, 4, 4), dtype="float32", frames_per_chunk=7).live_bytes
    half = predict_peak(vae, (1, 8, 7, 4, 4), dtype=dtype, frames_per_chunk=7).live_bytes
    assert full / 2 <= half < full


def test_a_profile_traced_from_numbers_equals_that_of_the_live_vae_and_survives_json(tmp_path: Path) -> None:
    vae = small_ltx_vae()
    traced = trace_profile("AutoencoderKLLTXVideo", json.loads(json.dumps(dict(vae.config))), "float32")
    assert traced.to_json() == profile_of(vae).to_json()
    traced.save(tmp_path / "profile.json")
    assert MemoryProfile.load(tmp_path / "profile.json").to_json() == traced.to_json()


def test_a_profile_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 99"):
        MemoryProfile.from_json({"format": 99})


@pytest.mark.parametrize("name", ["NoSuchVae", "DDIMScheduler", "__version__"])
def test_a_class_that_diffusers_does_not_have_is_named(name: str) -> None:
    with pytest.raises(UnsupportedVae, match=name):
        trace_profile(name, {}, "float32")


def test_paths_and_versions_do_not_change_a_configurations_identity() -> None:
    assert config_digest({"a": 1, "_name_or_path": "x"}) == config_digest({"a": 1, "_name_or_path": "y"})
    assert config_digest({"a": 1}) != config_digest({"a": 2})


@pytest.mark.parametrize(
    ("frames", "values"), [((), ()), ((2, 1), (1.0, 2.0)), ((1, 1), (1.0, 2.0)), ((1, 2), (1.0,))]
)
def test_a_curve_must_rise_in_frames(frames: tuple[int, ...], values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="Curve"):
        Curve(frames, values)


def test_chunks_of_a_vae_that_cannot_stream_have_no_bytes(alone_profile: MemoryProfile) -> None:
    shape = LatentShape(1, 16, 3, 4, 4)
    assert alone_profile.live_bytes(shape, 3) == 3000 * 16
    with pytest.raises(ValueError, match="chunks"):
        alone_profile.live_bytes(shape, 2)
