"""What a pipeline or its user changes on a live VAE: offloading, casts, wrappers, hooks, copies.

Each function changes the VAE of a `LiveVae`, or replaces it, before or after `enable`.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers.hooks import apply_group_offloading
from peft import IA3Config, LoraConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass(slots=True)
class LiveVae:
    """A VAE, what it is called with, and whether the denoiser still takes all memory."""

    vae: Any
    latents: Tensor
    clip: Tensor | None
    arguments: dict[str, Any] = field(default_factory=dict)
    more: list[Any] = field(default_factory=list)  # VAEs that are decoded with after this one
    denoiser: Denoiser | None = None


class Denoiser(nn.Linear):
    """Takes all memory until an offload hook moves it away."""

    def __init__(self) -> None:
        super().__init__(1, 1, device="meta")
        self.loaded = False

    def to(self, *_: Any, **__: Any) -> Denoiser:
        self.loaded = False
        return self


def model_offload(live: LiveVae) -> None:
    """The VAE's own hook moves the denoiser away, within `vae.decode`."""
    live.denoiser = Denoiser()
    _, hook = cpu_offload_with_hook(live.denoiser, CPU)
    live.vae, _ = cpu_offload_with_hook(live.vae, CPU, prev_module_hook=hook)


def sequential_offload(live: LiveVae) -> None:
    cpu_offload(live.vae, CPU, offload_buffers=len(live.vae._parameters) > 0)


def group_offload(live: LiveVae) -> None:
    apply_group_offloading(live.vae, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def layerwise_casting(live: LiveVae) -> None:
    live.vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def _adapted(live: LiveVae, config: type[PeftConfig], layers: list[str], **options: Any) -> None:
    """Let peft wrap these layers. Its weights are random, none is zero, so pixels change."""
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        inject_adapter_in_model(config(target_modules=layers, **options), live.vae)
    live.vae.eval()


def _layers(vae: nn.Module, kinds: tuple[type, ...], *, causal: bool) -> list[str]:
    """Names of layers of decoder and encoder. peft's LoRA cannot wrap convolutions that pad by themselves."""
    named = ((name, layer) for name, layer in vae.named_modules() if isinstance(layer, kinds))
    return [name for name, layer in named if type(layer).__name__.endswith("CausalConv3d") is causal]


def lora(live: LiveVae) -> None:
    """peft's LoRA, and its IA3 for a VAE that has no layer for LoRA."""
    layers = _layers(live.vae, (nn.Linear, nn.Conv2d, nn.Conv3d), causal=False)
    if layers:
        _adapted(live, LoraConfig, layers, r=2, lora_alpha=1, init_lora_weights=False)
    else:
        adapted_causal_layers(live)


def adapted_causal_layers(live: LiveVae) -> None:
    """peft's IA3 on the convolutions that pad by themselves: caches and rules meet a wrapper there."""
    layers = _layers(live.vae, (nn.Conv3d,), causal=True)
    _adapted(live, IA3Config, layers, feedforward_modules=[], init_ia3_weights=False)


def compile_decoder(live: LiveVae) -> None:
    live.vae.decoder.compile(backend="eager")


def compile_methods(live: LiveVae) -> None:
    live.vae.decode = torch.compile(live.vae.decode, backend="eager")
    live.vae.encode = torch.compile(live.vae.encode, backend="eager")


def slicing_and_tiling(live: LiveVae) -> None:
    for flag in ("use_slicing", "use_tiling"):
        if hasattr(live.vae, flag):
            setattr(live.vae, flag, True)


def cast_to(dtype: torch.dtype) -> Callable[[LiveVae], None]:
    def cast(live: LiveVae) -> None:
        nn.Module.to(live.vae, dtype)
        live.latents = live.latents.to(dtype)
        live.clip = None if live.clip is None else live.clip.to(dtype)
        live.arguments = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in live.arguments.items()}

    return cast


def move_to_meta(live: LiveVae) -> None:
    """A device that nothing is known about; only shapes are computed there."""
    live.vae.to("meta")
    live.latents = live.latents.to("meta")
    live.clip = None if live.clip is None else live.clip.to("meta")


def _decoded(live: LiveVae) -> None:
    """What is found out about a VAE in a decode must not count for the next one."""
    with torch.no_grad():
        live.vae.decode(live.latents.to(live.vae.dtype), **live.arguments)


def moved_back_and_forth(live: LiveVae) -> None:
    _decoded(live)
    live.vae.to(torch.float64)
    _decoded(live)
    live.vae.to("cpu", torch.float32)


def moved_by_its_parent(live: LiveVae) -> None:
    """A module that holds the VAE, and another VAE that shares its decoder."""
    _decoded(live)
    parent = nn.ModuleDict({"vae": live.vae})
    nn.Module.to(parent, torch.float64)
    _decoded(live)
    nn.Module.to(parent, torch.float32)
    other = copy.deepcopy(live.vae)
    other.decoder = live.vae.decoder
    live.more = [other]


def weights_assigned(live: LiveVae) -> None:
    _decoded(live)
    others = {name: value * 0.9 for name, value in live.vae.state_dict().items()}
    live.vae.load_state_dict(others, assign=True)


def other_networks(live: LiveVae) -> None:
    _decoded(live)
    other = copy.deepcopy(live.vae)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    live.vae.decoder, live.vae.encoder = other.decoder, other.encoder


def pickled(live: LiveVae) -> None:
    live.vae = pickle.loads(pickle.dumps(live.vae))


def copied(live: LiveVae) -> None:
    """The copy gets other weights; both are used."""
    original, live.vae = live.vae, copy.deepcopy(live.vae)
    with torch.no_grad():
        for parameter in live.vae.parameters():
            parameter.mul_(0.9)
    live.more = [original]


def _scaled(output: Any) -> Any:
    return output * 1.25 if torch.is_tensor(output) else (output[0] * 1.25, *output[1:])


def _scale_output(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    return _scaled(output)


def hook_on_decoder(live: LiveVae) -> None:
    live.vae.decoder.register_forward_hook(_scale_output)


def hooks_on_norms(live: LiveVae) -> None:
    for module in live.vae.modules():
        if type(module) in (nn.GroupNorm, nn.LayerNorm) or "RMS" in type(module).__name__:
            module.register_forward_hook(_scale_output)


def _call_scaled(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _scaled(forward(*args, **kwargs))


def patched_forward(live: LiveVae) -> None:
    decoder = live.vae.decoder
    decoder.forward = functools.partial(_call_scaled, decoder.forward)


class _Scaled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _scaled(self.inner(*args, **kwargs))


def replaced_norm(live: LiveVae) -> None:
    for name in ("conv_norm_out", "norm_out"):
        if isinstance(getattr(live.vae.decoder, name, None), nn.Module):
            setattr(live.vae.decoder, name, _Scaled(getattr(live.vae.decoder, name)))


def other_latents(live: LiveVae) -> None:
    """Latents and clip of another dtype than the VAE's."""
    live.latents = live.latents.double()
    live.clip = None if live.clip is None else live.clip.double()
