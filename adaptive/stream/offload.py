"""How a VAE is called: where it computes, waking it up there, and keeping its own splitting out of the way.

Owns the two conventions of offloaded modules: which device inputs must be on, and the hook that diffusers
fires before `vae.decode` (a method that hooks on `forward` do not see).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SPLITTING = ("use_slicing", "use_tiling", "use_framewise_decoding", "use_framewise_encoding")


def run_offload_hook(vae: Any) -> None:
    """Run the VAE's own accelerate hook, as diffusers does before `decode` and `encode`: it brings the
    weights."""
    hook: Any = getattr(vae, "_hf_hook", None)
    if hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)


def execution_device(vae: Any) -> torch.device:
    """Device that the VAE's inputs belong on; offloaded weights may be elsewhere until they are used."""
    for module in vae.modules():
        for hook in _flat(getattr(module, "_hf_hook", None)):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    device = vae.device  # diffusers' own property knows of group offloading
    return device if isinstance(device, torch.device) else torch.device(device)


def _flat(hook: Any) -> tuple[Any, ...]:
    return tuple(hook.hooks) if hasattr(hook, "hooks") else (hook,)


@contextmanager
def splitting_off(vae: Any) -> Iterator[None]:
    """Within, slicing, tiling and framewise coding are off: a call treats its whole input at once."""
    previous = {flag: getattr(vae, flag) for flag in _SPLITTING if hasattr(vae, flag)}
    try:
        for flag in previous:
            setattr(vae, flag, False)
        yield
    finally:
        for flag, value in previous.items():
            setattr(vae, flag, value)
