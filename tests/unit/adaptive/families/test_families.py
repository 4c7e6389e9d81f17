"""What families say of VAEs before anything runs: shapes, refusals, and masks that grow with the square."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from stream_vaes import CONFIGS, build, kwargs_of, latents_of, shared
from torch import nn

from adaptive.decoding.encoder import stream_encode
from adaptive.errors import UnsupportedVae
from adaptive.families import family_of, traits_of
from adaptive.memory.profile import Curve, MemoryProfile
from adaptive.stream import decode_whole, open_decode, self_test
from adaptive.types import LatentShape


@pytest.mark.parametrize("name", CONFIGS)
def test_traits_tell_the_shape_of_the_decoded_video(name: str) -> None:
    vae = shared(name)
    traits = traits_of(type(vae).__name__, vae.config)
    latents = latents_of(vae, 3)
    video = decode_whole(vae, latents, **kwargs_of(vae))
    assert traits.exact_streaming
    assert traits.latent_channels == latents.shape[1]
    assert video.shape[1] == family_of(vae).video_channels(vae.config)
    assert video.shape[2] == family_of(vae).video_frames(traits, 3)
    assert video.shape[3:] == (2 * traits.spatial_ratio, 3 * traits.spatial_ratio)


def test_a_magvit_that_norms_over_time_is_not_streamed() -> None:
    vae = shared("magvit")
    config = dict(vae.config) | {"spatial_group_norm": False}
    assert not traits_of("AutoencoderKLMagvit", config).exact_streaming
    other = type(vae)(**config)
    with pytest.raises(UnsupportedVae, match="norms over time"):
        open_decode(other, latents_of(vae, 2))
    with pytest.raises(UnsupportedVae, match="norms over time"):
        stream_encode(other, torch.zeros(1, 3, 5, 16, 16), frames_per_chunk=4)


def test_traits_of_every_family_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from adaptive.families import _REGISTRY, traits_of\n"
        "for name in (*_REGISTRY, 'Unlisted'):\n"
        "    assert traits_of(name, {}).vae_class == name\n"
        "assert not {'torch', 'diffusers'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=500)


@pytest.mark.parametrize("name", ["cosmos", "hunyuanvideo-1.5", "ltx-0.9.5", "magvit", "mochi"])
def test_a_network_with_a_layer_that_its_family_does_not_list_is_refused(name: str) -> None:
    vae = build(name)
    vae.decoder.unlisted = nn.Tanh()
    with pytest.raises(UnsupportedVae, match=r"streaming through unlisted \(Tanh\)"):
        open_decode(vae, latents_of(vae, 2), **kwargs_of(vae))


@pytest.mark.parametrize("name", ["qwenimage", "wan-2.1"])
def test_a_network_of_another_class_is_refused_where_it_carries_its_own_caches(name: str) -> None:
    vae = build(name)
    vae.decoder.__class__ = type("OtherDecoder", (type(vae.decoder),), {})
    with pytest.raises(UnsupportedVae, match="through a network of class OtherDecoder"):
        open_decode(vae, latents_of(vae, 2))


@pytest.mark.parametrize("name", ["cogvideox", "cosmos", "hunyuanvideo-1.0", "mochi", "svd", "wan-2.1"])
def test_an_argument_that_streaming_would_have_to_ignore_is_refused_by_name(name: str) -> None:
    vae = build(name)
    with pytest.raises(UnsupportedVae, match="decoding in chunks with the arguments gamma"):
        family_of(vae).decode_engine(vae, {"gamma": 2.2})


@pytest.mark.parametrize("name", ["hunyuanvideo-1.0", "svd"])
def test_a_sweep_through_offloaded_layers_is_refused(name: str) -> None:
    vae = build(name)
    add_hook_to_module(next(iter(vae.decoder.mid_block.resnets)), ModelHook())
    with pytest.raises(UnsupportedVae, match="offloaded layers"):
        self_test(vae)


def test_one_call_s_attention_mask_outgrows_everything_traced() -> None:
    traits = traits_of("AutoencoderKLHunyuanVideo15", {})
    profile = MemoryProfile(traits, "bfloat16", "", Curve((1, 2), (1000.0, 2000.0)), {})
    small, large = LatentShape(1, 32, 2, 4, 4), LatentShape(1, 32, 31, 45, 80)
    assert profile.live_bytes(small, 2) == 2000 * 16
    assert profile.live_bytes(large, 31) == 2 * (31 * 45 * 80) ** 2
