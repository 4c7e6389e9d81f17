"""A VAE that the project does not have: its family, `example_family`, is all that exact streaming needs."""

from __future__ import annotations

import sys
from typing import Any

import example_family
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from stream_property import encoded
from stream_vaes import latents_of, relative_error, streamed
from torch import Tensor, nn

import adaptive
from adaptive import families
from adaptive.memory.live_bytes import LiveBytes
from adaptive.stream import decode_whole, self_test


class ExampleCausalConv3d(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=(0, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        before = frames[:, :, :1].expand(-1, -1, 2, -1, -1)
        return self.conv(torch.cat([before, frames], 2))


class ExampleUpsample3d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_space = nn.Upsample(scale_factor=(1, 2, 2))
        self.conv = ExampleCausalConv3d(channels, channels)

    def forward(self, frames: Tensor) -> Tensor:
        doubled = torch.cat([frames[:, :, :1], frames[:, :, 1:].repeat_interleave(2, dim=2)], 2)
        return self.conv(self.in_space(doubled))


class ExampleUpBlock3d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.upsamplers = nn.ModuleList([ExampleUpsample3d(channels)])

    def forward(self, frames: Tensor) -> Tensor:
        return self.upsamplers[0](frames)


class ExampleDecoder3d(nn.Module):
    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.mid_block = ExampleCausalConv3d(latent_channels, 8)
        self.up_blocks = nn.ModuleList([ExampleUpBlock3d(8)])
        self.act = nn.SiLU()
        self.conv_out = ExampleCausalConv3d(8, 3)

    def forward(self, latents: Tensor) -> Tensor:
        return self.conv_out(self.act(self.up_blocks[0](self.mid_block(latents))))


class ExampleEncoder3d(nn.Module):
    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.conv_in = ExampleCausalConv3d(3, 8, stride=2)
        self.act = nn.SiLU()
        self.conv_out = ExampleCausalConv3d(8, 2 * latent_channels)

    def forward(self, frames: Tensor) -> Tensor:
        return self.conv_out(self.act(self.conv_in(frames)))


class AutoencoderKLExample(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, latent_channels: int = 4) -> None:
        super().__init__()
        self.encoder = ExampleEncoder3d(latent_channels)
        self.decoder = ExampleDecoder3d(latent_channels)

    def encode(self, video: Tensor, return_dict: bool = False) -> tuple[Any]:
        assert not return_dict
        return (DiagonalGaussianDistribution(self.encoder(video)),)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        assert not return_dict
        return (self.decoder(latents),)


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> AutoencoderKLExample:
    monkeypatch.setitem(families._REGISTRY, "AutoencoderKLExample", "example")
    monkeypatch.setitem(sys.modules, "adaptive.families.example", example_family)
    torch.manual_seed(7)
    return AutoencoderKLExample().eval()


@pytest.mark.parametrize("schedule", [(1,), (2,), (3, 1), (5,)])
def test_a_family_of_about_forty_lines_streams_its_vae_exactly(
    vae: AutoencoderKLExample, schedule: tuple[int, ...]
) -> None:
    latents, video = latents_of(vae, 5), torch.randn(1, 3, 9, 8, 12)
    assert relative_error(streamed(vae, latents, schedule), decode_whole(vae, latents)) <= 2e-5
    whole = adaptive.encode(vae, video, posterior="parameters")
    assert relative_error(encoded(vae, video, schedule), whole) <= 2e-5
    self_test(vae)


def test_its_chunks_need_less_memory(vae: AutoencoderKLExample) -> None:
    latents, peaks = latents_of(vae, 9, sides=(8, 12)), []
    for frames_per_chunk in (9, 1):
        live = LiveBytes()
        with live.active():
            for _ in adaptive.stream_decode(vae, latents, frames_per_chunk=frames_per_chunk):
                pass
        peaks.append(live.peak_bytes)
    assert peaks[1] < peaks[0] / 2
