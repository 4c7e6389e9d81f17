"""A network whose layers are hooked, patched or replaced: the same frames, or refused at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stream_vaes import build, latents_of, relative_error, run, streamed
from torch import Tensor, nn

import adaptive
from adaptive.errors import UnsupportedVae
from adaptive.families import family_of
from adaptive.stream import decode_whole, open_decode
from adaptive.stream.encode_stream import EncodeStream


def _halve(_module: nn.Module, _args: object, output: Any) -> Any:
    return output / 2


def _hook(path: str) -> Callable[[Any], None]:
    def change(vae: Any) -> None:
        vae.decoder.get_submodule(path).register_forward_hook(_halve)

    return change


def _patch(path: str) -> Callable[[Any], None]:
    def change(vae: Any) -> None:
        layer = vae.decoder.get_submodule(path)
        original = layer.forward
        layer.forward = lambda *args, **kwargs: original(*args, **kwargs) / 2

    return change


class GroupNorm(nn.Module):
    """Shares its name with torch's."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self.num_groups, self.eps, self.affine = replaced.num_groups, replaced.eps, True
        self.weight, self.bias = replaced.weight, replaced.bias

    def forward(self, frames: Tensor) -> Tensor:
        return frames / 2


def _replaced_norm(vae: Any) -> None:
    vae.decoder.conv_norm_out = GroupNorm(vae.decoder.conv_norm_out)


def _no_norm(vae: Any) -> None:
    vae.decoder.conv_norm_out = nn.Identity()


class Conv3d(nn.Module):
    """A wrapper that shares its name with the layer it wraps, as those of peft do."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = [wrapped]
        self.kernel_size, self.stride = wrapped.kernel_size, wrapped.stride

    def forward(self, frames: Tensor) -> Tensor:
        return self.wrapped[0](frames) / 2


def _wrapped_convolution(vae: Any) -> None:
    vae.decoder.conv_out.conv = Conv3d(vae.decoder.conv_out.conv)


# What would be streamed wrongly, and the layer that the error must name.
REFUSED = {
    "svd-hook-decoder": ("svd", _hook(""), r"itself \(TemporalDecoder\)"),
    "svd-hook-norm": (
        "svd",
        _hook("up_blocks.0.resnets.0.temporal_res_block.norm1"),
        r"up_blocks\.0\.resnets\.0\.temporal_res_block\.norm1 \(GroupNorm\)",
    ),
    "svd-patched": ("svd", _patch(""), r"itself \(TemporalDecoder\)"),
    "svd-replaced": ("svd", _replaced_norm, r"conv_norm_out \(GroupNorm\)"),
    "hunyuan-hook-decoder": ("hunyuanvideo-1.0", _hook(""), r"itself \(HunyuanVideoDecoder3D\)"),
    "hunyuan-hook-norm": ("hunyuanvideo-1.0", _hook("conv_norm_out"), r"conv_norm_out \(GroupNorm\)"),
    "hunyuan-patched": ("hunyuanvideo-1.0", _patch(""), r"itself \(HunyuanVideoDecoder3D\)"),
    "hunyuan-replaced": ("hunyuanvideo-1.0", _replaced_norm, r"conv_norm_out \(GroupNorm\)"),
    "ltx-patched-decoder": ("ltx-0.9.0", _patch(""), r"itself \(LTXVideoDecoder3d\)"),
    "ltx-patched-layer": (
        "ltx-0.9.0",
        _patch("mid_block.resnets.0.conv1"),
        r"mid_block\.resnets\.0\.conv1 \(LTXVideoCausalConv3d\)",
    ),
    "ltx-patched-block": ("ltx-causal", _patch("mid_block"), r"mid_block \(LTXVideoMidBlock3d\)"),
    "ltx-wrapped": ("ltx-0.9.0", _wrapped_convolution, r"conv_out\.conv \(Conv3d\)"),
    "wan-patched-decoder": ("wan-2.1", _patch(""), r"itself \(WanDecoder3d\)"),
    "wan-patched-layer": ("wan-2.1", _patch("conv_out"), r"conv_out \(WanCausalConv3d\)"),
    "wan-patched-stage": ("wan-2.1", _patch("mid_block"), r"mid_block \(WanMidBlock\)"),
    "cosmos-patched": ("cosmos", _patch("conv_in.conv_s"), r"conv_in\.conv_s \(CosmosCausalConv3d\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_stream_would_bypass_is_refused_before_any_frame_with_the_layer_s_name(case: str) -> None:
    name, change, place = REFUSED[case]
    vae = build(name)
    change(vae)
    with pytest.raises(UnsupportedVae, match=place):
        open_decode(vae, latents_of(vae, 3))


@pytest.mark.parametrize("processor", ["", "cosmos", "mochi"])
def test_attention_that_a_rule_computes_must_be_diffusers_own(processor: str) -> None:
    class Own:
        def __call__(self, *_: Any, **__: Any) -> None:
            raise AssertionError("called")

    name = processor or "hunyuanvideo-1.0"
    vae = build(name)
    network = vae.encoder if name == "mochi" else vae.decoder
    layer = next(module for module in network.modules() if hasattr(module, "processor"))
    layer.processor = Own()
    with pytest.raises(UnsupportedVae, match="with a Own"):
        EncodeStream(vae, [torch.rand(1, 3, 7, 16, 16)]) if name == "mochi" else open_decode(
            vae, latents_of(vae, 2)
        )


def test_norms_over_time_are_found_before_the_first_step() -> None:
    vae = build("cosmos")
    norm = next(each for each in vae.decoder.modules() if type(each).__name__ == "CosmosCausalGroupNorm")
    norm.num_groups = 2
    with pytest.raises(UnsupportedVae, match="2 groups"):
        open_decode(vae, latents_of(vae, 2))


# Changes of the upper layers, which strips compute themselves or run on parts of a frame.
CHANGED = {
    "kl-hook-decoder": ("kl", _hook("")),
    "kl-hook-norm": ("kl", _hook("up_blocks.1.resnets.0.norm1")),
    "kl-hook-last-norm": ("kl", _hook("conv_norm_out")),
    "kl-patched-decoder": ("kl", _patch("")),
    "kl-patched-norm": ("kl", _patch("conv_norm_out")),
    "kl-replaced-norm": ("kl", _replaced_norm),
    "kl-without-norm": ("kl", _no_norm),
    "ltx-hook-decoder": ("ltx-0.9.0", _hook("")),
    "ltx-hook-middle": ("ltx-0.9.0", _hook("mid_block")),
    "ltx-hook-entry": ("ltx2", _hook("up_blocks.1")),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_decoder_streams_as_it_is_and_has_no_strips(case: str) -> None:
    name, change = CHANGED[case]
    vae = build(name)
    plain = decode_whole(vae, latents := latents_of(vae, 3, sides=(4, 2)))
    change(vae)
    expected = decode_whole(vae, latents)
    assert relative_error(expected, plain) > 0.1
    assert relative_error(streamed(vae, latents, [1]), expected) <= 2e-5
    assert family_of(vae).strip_halo(vae) is None
    with open_decode(vae, latents) as stream, pytest.raises(UnsupportedVae, match="strips"):
        stream.step(1, 2)
    assert adaptive.AdaptiveDecoder(vae).profile.tiled is None


@pytest.mark.parametrize(
    "name", ["ltx-0.9.0", "ltx2", "wan-2.1", "cosmos", "magvit", "hunyuanvideo-1.5", "mochi"]
)
def test_tensors_that_forward_hooks_keep_stay_whole(name: str) -> None:
    vae = build(name)
    kept: list[tuple[str, Tensor]] = []
    for path, layer in vae.decoder.named_modules():

        def keep(_module: nn.Module, args: Any, output: Any = None, path: str = path) -> None:
            kept.extend((path, each) for each in (*args, output) if isinstance(each, Tensor) and each.numel())

        layer.register_forward_hook(keep)
        layer.register_forward_pre_hook(keep)
    latents = latents_of(vae, 3)
    with open_decode(vae, latents) as stream:
        for _ in run(stream, [2]):
            pass
    assert kept
    assert not [path for path, tensor in kept if not tensor.numel()]


def test_a_hook_registered_between_two_steps_keeps_its_tensors_too() -> None:
    vae = build("ltx-0.9.0")
    kept: list[Tensor] = []
    with open_decode(vae, latents_of(vae, 4)) as stream:
        stream.step(1)
        for layer in vae.decoder.modules():
            layer.register_forward_hook(lambda _module, _args, output: kept.append(output))
        stream.step(2)
    assert any(each.numel() for each in kept)
    assert all(each.untyped_storage().nbytes() for each in kept if 0 not in each.shape)
    assert not [each for each in kept if each.shape == (0,)]
