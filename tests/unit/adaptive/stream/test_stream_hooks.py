"""Offloading hooks around a streamed VAE: all are called, all are still there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from stream_vaes import build, kwargs_of, latents_of, relative_error, shared, streamed
from torch import nn

from adaptive.errors import UnsupportedVae
from adaptive.stream import decode_whole, open_decode

NAMES = ["ltx-0.9.0", "ltx-causal", "ltx-0.9.1"]


class Counting(ModelHook):
    """Counts what happens at one module."""

    def __init__(self, calls: Counter[str], name: str) -> None:
        self.calls = calls
        self.name = name

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - accelerate's names
        self.calls[f"before {self.name}"] += 1
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:  # noqa: ARG002
        self.calls[f"after {self.name}"] += 1
        return output


def attributes(vae: nn.Module) -> dict[str, list[tuple[str, int]]]:
    """Everything that hangs on the modules, by identity."""
    return {
        name: sorted((key, id(value)) for key, value in vars(module).items() if key != "_parameters")
        for name, module in vae.named_modules()
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_hook_of_every_module_is_called_and_still_there(name: str) -> None:
    vae = build(name)
    latents, kwargs = latents_of(vae, 5), kwargs_of(vae)
    expected = decode_whole(vae, latents, **kwargs)
    calls: Counter[str] = Counter()
    for path, module in vae.named_modules():
        if path.startswith("decoder"):
            add_hook_to_module(module, Counting(calls, path))
    decode_whole(vae, latents, **kwargs)
    without_splitting = set(calls)
    calls.clear()
    before = attributes(vae)
    assert relative_error(streamed(vae, latents, [2, 1], **kwargs), expected) <= 2e-5
    assert set(calls) == without_splitting
    assert all(calls[f"before {path}"] == calls[f"after {path}"] for path in _paths(calls))
    assert attributes(vae) == before


@pytest.mark.parametrize("name", NAMES)
def test_model_offload_s_hook_on_the_vae_itself_fires(name: str) -> None:
    vae = build(name)
    latents, kwargs = latents_of(vae, 4), kwargs_of(vae)
    expected = decode_whole(vae, latents, **kwargs)
    other = nn.Linear(1, 1)
    other, first = cpu_offload_with_hook(other, torch.device("cpu"))
    vae, hook = cpu_offload_with_hook(vae, torch.device("cpu"), prev_module_hook=first)
    calls: Counter[str] = Counter()
    original = hook.hook.pre_forward
    hook.hook.pre_forward = lambda module: (calls.update(["vae"]), original(module))[1]
    before = attributes(vae)
    assert relative_error(streamed(vae, latents, [1], **kwargs), expected) <= 2e-5
    assert calls["vae"] > 0
    assert attributes(vae) == before


@pytest.mark.parametrize("name", NAMES)
def test_sequential_offload_brings_each_layer_s_weights_and_takes_them_away_again(name: str) -> None:
    vae = build(name)
    latents, kwargs = latents_of(vae, 4), kwargs_of(vae)
    expected = decode_whole(vae, latents, **kwargs)
    cpu_offload(vae, execution_device="cpu")
    assert {parameter.device.type for parameter in vae.parameters()} == {"meta"}
    before = attributes(vae)
    assert relative_error(streamed(vae, latents, [1, 2], **kwargs), expected) <= 2e-5
    assert {parameter.device.type for parameter in vae.parameters()} == {"meta"}
    assert _names(attributes(vae)) == _names(before)
    assert relative_error(decode_whole(vae, latents, **kwargs), expected) <= 2e-5


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload_passes_unchanged(kind: str) -> None:
    vae = build("ltx-0.9.0")
    latents = latents_of(vae, 4)
    expected = decode_whole(vae, latents)
    cpu = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(vae, onload_device=cpu, offload_device=cpu, offload_type=kind, **blocks)
    before = attributes(vae)
    assert relative_error(streamed(vae, latents, [1, 2]), expected) <= 2e-5
    assert attributes(vae) == before


def test_a_failed_step_leaves_no_trace_on_the_modules() -> None:
    vae = build("ltx-0.9.0")
    before = attributes(vae)
    vae.decoder.conv_out.conv.register_forward_pre_hook(_fail)
    hooked = attributes(vae)
    with open_decode(vae, latents_of(vae, 8)) as stream, pytest.raises(MemoryError):
        stream.step(8)
    assert attributes(vae) == hooked
    assert hooked.keys() == before.keys()


def test_flags_for_slicing_and_tiling_are_held_off_for_a_whole_decode_only() -> None:
    vae = build("ltx-0.9.1")
    latents, kwargs = latents_of(vae, 4, batch=2), kwargs_of(vae, 2)
    expected = decode_whole(vae, latents, **kwargs)
    vae.enable_slicing()
    vae.enable_tiling(tile_sample_min_height=16, tile_sample_min_width=16)
    vae.use_framewise_decoding = True
    assert torch.equal(decode_whole(vae, latents, **kwargs), expected)
    assert vae.use_slicing
    assert vae.use_tiling
    assert vae.use_framewise_decoding


def _replaced(vae: Any) -> None:
    layer = vae.decoder.mid_block.resnets[0].conv1
    layer.forward = lambda frames: frames


def _foreign(vae: Any) -> None:
    vae.decoder.conv_act = nn.GroupNorm(1, 8)


def _compiled_layer(vae: Any) -> None:
    vae.decoder.conv_in.compile(backend="eager")


def _compiled_decoder(vae: Any) -> None:
    vae.decoder = torch.compile(vae.decoder, backend="eager")


@pytest.mark.parametrize("change", [_replaced, _foreign, _compiled_layer, _compiled_decoder])
def test_what_is_not_understood_is_refused_instead_of_streamed_wrongly(change: Any) -> None:
    vae = build("ltx-0.9.0")
    change(vae)
    with pytest.raises(UnsupportedVae), open_decode(vae, latents_of(shared("ltx-0.9.0"), 2)) as stream:
        stream.step(1)


def _fail(*_: Any) -> None:
    raise MemoryError("injected")


def _paths(calls: Counter[str]) -> set[str]:
    return {key.split(" ", 1)[1] for key in calls}


def _names(attributes: dict[str, list[tuple[str, int]]]) -> dict[str, list[str]]:
    return {name: [key for key, _ in values] for name, values in attributes.items()}
