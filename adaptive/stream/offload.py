"""How to call a VAE that may be offloaded, and how to keep it from splitting its input.

Owns two conventions of offloaded modules: the device that inputs must be on, and the hook that diffusers runs
before `vae.decode` (hooks on `forward` do not see that method).
"""

from __future__ import annotations

import threading
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


def unsplit(vae: Any) -> Any:
    """The VAE to call for a whole input: `vae`, or an object of its class that shares all it has, with
    slicing, tiling and framewise coding off.

    The flags of `vae` stay as they are, because other threads may be calling it. It is `vae` itself where
    they are off, and where its owner has replaced its methods, which may be bound to it (see
    `without_splitting`).
    """
    if not splits_itself(vae) or _has_methods_of_its_own(vae):
        return vae
    twin = object.__new__(type(vae))
    vars(twin).update(vae.__getstate__())  # without what `adaptive.enable` has set
    vars(twin).update((flag, False) for flag in _SPLITTING if hasattr(vae, flag))
    return twin


def _has_methods_of_its_own(vae: Any) -> bool:
    return bool({"decode", "encode"} & vae.__getstate__().keys())


_SETTING_FLAGS = threading.Lock()
_flags_off: dict[int, tuple[int, dict[str, bool]]] = {}  # by VAE: number of contexts, and the flags before


@contextmanager
def without_splitting(vae: Any) -> Iterator[Any]:
    """Within the context, the VAE that it gives computes its whole input at once; see `unsplit`.

    Where the flags of `vae` itself must be changed for that, the last of several contexts restores them.
    """
    called = unsplit(vae)
    if called is not vae or not _has_methods_of_its_own(vae):
        yield called
        return
    with _SETTING_FLAGS:
        count, before = _flags_off.get(id(vae), (0, {}))
        before = before or {flag: getattr(vae, flag) for flag in _SPLITTING if hasattr(vae, flag)}
        _flags_off[id(vae)] = count + 1, before
        for flag in before:
            setattr(vae, flag, False)
    try:
        yield vae
    finally:
        with _SETTING_FLAGS:
            count, before = _flags_off.pop(id(vae))
            if count > 1:
                _flags_off[id(vae)] = count - 1, before
            else:
                for flag, value in before.items():
                    setattr(vae, flag, value)
