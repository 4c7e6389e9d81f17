"""Layers in less memory give the very bits that diffusers' own code gives."""

from __future__ import annotations

import weakref

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanRMS_norm,
    WanUpsample,
)
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from adaptive.memory.live_bytes import trace_peak
from adaptive.stream.layers.causal import CausalLayers
from adaptive.stream.layers.norms import root_mean_square


class Row(nn.Module):
    """An activation and a convolution, called as Wan's blocks call theirs."""

    def __init__(self, size: int, padding: int) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.conv = WanCausalConv3d(8, 8, size, padding=padding)

    def forward(self, x: Tensor, cache: Tensor | None) -> Tensor:
        x = self.act(x)
        x = self.conv(x, cache)
        return x


def layers_of(network: nn.Module) -> CausalLayers:
    return CausalLayers(network, "Wan")


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("past", [None, 1, 2, 3])
@pytest.mark.parametrize(("size", "padding"), [(3, 1), (1, 0)])
@torch.no_grad()
def test_a_convolution_sees_the_same_numbers(size: int, padding: int, past: int | None, last: bool) -> None:
    row = Row(size, padding)
    memory_format = torch.channels_last_3d if last else torch.contiguous_format
    frames = torch.randn(2, 8, 3, 5, 6).contiguous(memory_format=memory_format)
    cache = None if past is None else torch.randn(2, 8, past, 5, 6).contiguous(memory_format=memory_format)
    expected, before = row(frames, cache), frames.clone()
    with layers_of(row).low_memory():
        assert torch.equal(row(frames, cache), expected)
    assert torch.equal(frames, before)
    assert torch.equal(row(frames, cache), expected)


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_norm_gives_the_same_numbers_and_leaves_its_input(
    dtype: torch.dtype, bias: bool, images: bool
) -> None:
    norm = WanRMS_norm(8, images=images, bias=bias).to(dtype)
    norm.gamma.copy_(torch.randn_like(norm.gamma))
    frames = torch.randn(2, 8, 5, 6) if images else torch.randn(2, 8, 3, 5, 6)
    frames = frames.to(dtype)
    expected, before = norm(frames), frames.clone()
    with layers_of(norm).low_memory():
        assert torch.equal(norm(frames), expected)
    assert torch.equal(frames, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_upsampling_gives_the_same_numbers(dtype: torch.dtype) -> None:
    upsample = WanUpsample(scale_factor=(2.0, 2.0), mode="nearest-exact")
    frames = torch.randn(2, 8, 5, 6, dtype=dtype)
    expected = upsample(frames)
    with layers_of(upsample).low_memory():
        assert torch.equal(upsample(frames), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_norm_of_ltx_gives_the_same_numbers_and_leaves_its_input(dtype: torch.dtype) -> None:
    norm = RMSNorm(8, eps=1e-8, elementwise_affine=False)
    frames = torch.randn(2, 8, 3, 5, 6).to(dtype).movedim(1, -1)
    expected, before = norm(frames), frames.clone()
    found = root_mean_square(norm, norm.forward, frames)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    assert torch.equal(frames, before)


@torch.no_grad()
def test_after_a_failure_nothing_is_held() -> None:
    row = Row(3, 1)
    layers = layers_of(row)
    kept: list[weakref.ref[Tensor]] = []
    row.act.register_forward_hook(lambda _module, _args, output: kept.append(weakref.ref(output)))
    with pytest.raises(RuntimeError), layers.low_memory():
        row(torch.randn(1, 8, 3, 5, 6), torch.randn(1, 8, 1, 7, 7))  # a cache of another size
    assert kept[0]() is None


def test_frames_are_alive_once_while_a_convolution_runs() -> None:
    with torch.device("meta"):
        row, frames = Row(3, 1), torch.empty(1, 8, 64, 64, 64)
    layers = layers_of(row)

    def low_memory() -> None:
        with layers.low_memory():
            row(frames, None)

    # window and activation, then window and result
    assert trace_peak(low_memory).peak_bytes == pytest.approx(2 * frames.nbytes, rel=0.12)
    assert trace_peak(lambda: row(frames, None)).peak_bytes > 2.9 * frames.nbytes
