"""Find, before a stream begins, the layers of a live network that it could not run as the network does.

A stream relies on diffusers' own code: an allow-list of classes, called in the known order. Layers may have
been replaced by classes that only share a name, their `forward` may be patched, and hooks may be registered
on layers that a strip or a layer sweep computes itself. Knows modules, neither engines nor families.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from adaptive.errors import UnsupportedVae
from adaptive.stream.intercept import check_forwards, place_of


def is_known(layer: nn.Module, network: nn.Module) -> bool:
    """Whether the class of `layer` is torch's, diffusers' or from the package of `network`'s class.

    A wrapper may have the name of the class that it wraps, as peft's `Conv3d` has.
    """
    module = type(layer).__module__
    own = type(network).__module__.partition(".")[0]
    return module.startswith(("torch.nn.modules.", "diffusers.")) or module.partition(".")[0] == own


def check_classes(network: nn.Module, names: frozenset[str], action: str = "streaming") -> None:
    """Raise `UnsupportedVae`, naming the layer, if a class of `network` is not known or not in `names`."""
    for layer in network.modules():
        kind = type(layer).__name__
        if kind not in names or not is_known(layer, network):
            where = place_of(network, layer)
            what = "without a streaming rule" if kind not in names else f"of {type(layer).__module__}"
            raise UnsupportedVae(type(network).__name__, f"{action} through {where}, a class {what}")


def check_reimplemented(network: nn.Module, names: frozenset[str], action: str) -> None:
    """Raise `UnsupportedVae`, naming layer and reason, if `network` must be called as it is.

    For engines that do some layers' work without calling them. Hooks of these layers would not run, and hooks
    of the others would see parts of frames.
    """
    check_classes(network, names, action)
    check_forwards(network, network.modules(), action)
    for layer in network.modules():
        reason = ""
        if _OFFLOAD_HOOKS & vars(layer).keys():
            reason = "offloaded layers"
        elif has_hooks((layer,)):
            reason = "layers with forward hooks"
        elif isinstance(layer, nn.GroupNorm) and not layer.affine:
            reason = "norms without weights"
        if reason:
            raise UnsupportedVae(
                type(network).__name__, f"{action} through {reason}: {place_of(network, layer)}"
            )


def check_processors(network: nn.Module, layer_class: str, processors: frozenset[str]) -> None:
    """Raise `UnsupportedVae` if an attention layer of this class has another processor than `processors`."""
    for layer in network.modules():
        found = type(getattr(layer, "processor", None)).__name__
        if type(layer).__name__ == layer_class and found not in processors:
            wanted = f"streaming through {place_of(network, layer)} with a {found}"
            raise UnsupportedVae(type(network).__name__, wanted)


def has_hooks(layers: Iterable[nn.Module]) -> bool:
    """Whether torch's forward hooks are registered on one of `layers`, or on all modules of the process."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def may_keep_tensors(layers: Iterable[nn.Module]) -> bool:
    """Whether someone may keep a reference to what these layers receive or return.

    A layer's input must then not be emptied when the layer has a copy of it. The hooks that accelerate and
    diffusers place move weights and inputs and keep neither.
    """
    layers = tuple(layers)
    return has_hooks(layers) or any(
        _is_foreign(hook)
        for layer in layers
        if _OFFLOAD_HOOKS & vars(layer).keys()
        for hook in _hooks_of(layer)
    )


_OFFLOAD_HOOKS = {"_hf_hook", "_diffusers_hook"}


def _hooks_of(layer: Any) -> list[Any]:
    own = vars(layer)
    placed = own.get("_hf_hook")
    registry = own.get("_diffusers_hook")
    hooks = list(getattr(placed, "hooks", (placed,))) if placed is not None else []
    return hooks + (list(registry.hooks.values()) if registry is not None else [])


def _is_foreign(hook: object) -> bool:
    return type(hook).__module__.partition(".")[0] not in ("accelerate", "diffusers")
