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


class _LoraLayer(nn.Module):
    """A layer with a low-rank branch, built as peft builds it: a module around the layer, of its name."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        width = base_layer.weight.shape[0]
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(width)
            self.lora_a = nn.Parameter(torch.randn(width, 2) * 0.3)
            self.lora_b = nn.Parameter(torch.randn(2, width) * 0.3)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        outputs: Tensor = self.base_layer(inputs, *args, **kwargs)
        channel = -1 if isinstance(self.base_layer, nn.Linear) else 1
        last = outputs.movedim(channel, -1)
        return (last + last @ self.lora_a @ self.lora_b).movedim(-1, channel)


# peft's wrappers have the class names of what they wrap.
_WRAPPERS = {kind: type(kind.__name__, (_LoraLayer,), {}) for kind in (nn.Linear, nn.Conv2d, nn.Conv3d)}


def lora(live: LiveVae) -> None:
    for module in list(live.vae.modules()):
        for name, child in list(module.named_children()):
            if type(child) in _WRAPPERS:
                setattr(module, name, _WRAPPERS[type(child)](child))
    live.vae.eval()


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
