"""How to call a VAE that may be offloaded, and how to keep it from splitting its input.

Owns two conventions of offloaded modules: the device that inputs must be on, and the hook that diffusers runs
before `vae.decode` (hooks on `forward` do not see that method).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SPLITTING = ("use_slicing", "use_tiling", "use_framewise_decoding", "use_framewise_encoding")


def run_offload_hook(vae: Any) -> None:
    """Run the VAE's accelerate hook, which loads its weights.

    diffusers does the same before `decode` and `encode`.
    """
    hook: Any = getattr(vae, "_hf_hook", None)
    if hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)


def execution_device(vae: Any) -> torch.device:
    """Return the device that the VAE's inputs must be on.

    Offloaded weights may be elsewhere until they are used.
    """
    for module in vae.modules():
        for hook in _flat(getattr(module, "_hf_hook", None)):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    device = vae.device  # this property of diffusers takes group offloading into account
    return device if isinstance(device, torch.device) else torch.device(device)


def _flat(hook: Any) -> tuple[Any, ...]:
    return tuple(hook.hooks) if hasattr(hook, "hooks") else (hook,)


def splits_itself(vae: Any) -> bool:
    """Whether the VAE's own call is set to cut its input."""
    return any(getattr(vae, flag, False) for flag in _SPLITTING)


@contextmanager
def without_splitting(vae: Any) -> Iterator[None]:
    """Within the context, slicing, tiling and framewise coding are off.

    A call then computes its whole input at once.
    """
    previous = {flag: getattr(vae, flag) for flag in _SPLITTING if hasattr(vae, flag)}
    try:
        for flag in previous:
            setattr(vae, flag, False)
        yield
    finally:
        for flag, value in previous.items():
            setattr(vae, flag, value)
