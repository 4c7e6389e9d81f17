"""A decode that must be finite raises at the first bad chunk, and needs the memory that was predicted."""

from __future__ import annotations

import types
from collections import deque
from typing import Any

import pytest
import torch
from stream_vaes import build, kwargs_of
from torch import Tensor

import adaptive
from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.errors import NonFiniteValues
from adaptive.memory.live_bytes import LiveBytes
from adaptive.memory.profile_trace import profile_of
from adaptive.planning.planner import Policy
from adaptive.testing import ScriptedProbe, small_ltx_vae

LATENTS = (1, 8, 4, 2, 3)


@pytest.fixture
def broken() -> Any:
    """A VAE whose last layer has one NaN."""
    vae = small_ltx_vae()
    with torch.no_grad():
        vae.decoder.conv_out.conv.bias[0] = torch.nan
    return vae


@pytest.mark.parametrize(
    "options", [{"strategy": "batched"}, {"frames_per_chunk": 2}, {"frames_per_chunk": 1}]
)
def test_broken_frames_are_refused_where_finite_ones_are_asked_for_and_given_where_not(
    broken: Any, options: dict[str, Any]
) -> None:
    latents = torch.randn(LATENTS)
    frames = adaptive.decode(broken, latents, **options)
    assert frames.shape[2] == 25
    assert frames.isnan().any()
    with pytest.raises(NonFiniteValues, match="of the decoded frames 1 to") as caught:
        adaptive.decode(broken, latents, require_finite=True, **options)
    assert caught.value.stage == "decoding"
    assert 0 < caught.value.values < caught.value.of <= frames.numel()


def test_only_the_first_chunk_with_broken_values_is_refused() -> None:
    vae, latents = small_ltx_vae(decoder_causal=True), torch.randn(LATENTS)
    latents[:, :, 3] = torch.inf
    decoder = AdaptiveDecoder(vae, policy=Policy(frames_per_chunk=1, require_finite=True))
    parts: list[Tensor] = []
    with pytest.raises(NonFiniteValues, match="of the decoded frames 18 to 25 are") as caught:
        parts.extend(decoder.frames(latents))
    whole = torch.cat(parts, 2)
    assert whole.shape[2] == 17
    assert whole.isfinite().all()
    assert caught.value.of == 3 * 8 * 64 * 96


def test_an_enabled_pipeline_may_ask_for_finite_frames(broken: Any) -> None:
    latents = torch.randn(LATENTS)
    pipe = types.SimpleNamespace(vae=broken)
    adaptive.enable(pipe)
    with torch.no_grad():
        assert broken.decode(latents, return_dict=False)[0].isnan().any()
    adaptive.enable(pipe, require_finite=True)
    with torch.no_grad(), pytest.raises(NonFiniteValues):
        broken.decode(latents)


@pytest.mark.parametrize(("name", "frames_per_chunk"), [("ltx-causal", 1), ("cogvideox", 2)])
def test_the_check_leaves_the_counted_peak_as_predicted(name: str, frames_per_chunk: int) -> None:
    vae = build(name)
    profile = profile_of(vae)
    latents = torch.randn(1, profile.traits.latent_channels, 3, 3, 4)
    peaks = []
    for require_finite in (False, True):
        policy = Policy(frames_per_chunk=frames_per_chunk, reserve_bytes=0, require_finite=require_finite)
        decoder = AdaptiveDecoder(vae, profile=profile, probe=ScriptedProbe([2**40]), policy=policy)
        plan, live = decoder.plan(latents, **kwargs_of(vae)), LiveBytes()
        deque(decoder.frames(latents, resume_plan=plan, **kwargs_of(vae)), maxlen=0)  # traces on meta once
        with live.active():
            deque(decoder.frames(latents, resume_plan=plan, **kwargs_of(vae)), maxlen=0)
        peaks.append(live.peak_bytes)
    predicted = adaptive.predict_peak(vae, tuple(latents.shape), frames_per_chunk=frames_per_chunk)
    assert peaks[1] == peaks[0]
    assert peaks[1] == pytest.approx(predicted.live_bytes, rel=0.02)
