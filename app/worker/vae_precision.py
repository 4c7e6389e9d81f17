"""Lets a pipeline encode with a VAE of another dtype than its other components.

Many pipelines give `vae.encode` an image in the dtype of their denoiser, and use the latents as they come.
Must not know how a call is encoded: see `adaptive.pipelines.encode_call`.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What `DiagonalGaussianDistribution` and `IdentityDistribution` hold.
_TENSORS = ("parameters", "mean", "logvar", "std", "var")


class EncodeInVaeDtype:
    """Replaces `vae.encode`: encodes in the VAE's dtype, and answers in the dtype of the input.

    `encode` is the call that encodes. Input of the VAE's own dtype passes unchanged.
    """

    def __init__(self, vae: Any, encode: Callable[..., Any]) -> None:
        self._vae = vae
        self._encode = encode

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of `vae.encode` for any input that the VAE accepts."""
        dtype: torch.dtype = self._vae.dtype
        given = [each for each in (*args, *kwargs.values()) if _is_float(each)]
        if not given or given[0].dtype == dtype:
            return self._encode(*args, **kwargs)
        moved = [each.to(dtype) if _is_float(each) else each for each in args]
        named = {name: each.to(dtype) if _is_float(each) else each for name, each in kwargs.items()}
        return _in_dtype(self._encode(*moved, **named), given[0].dtype)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _in_dtype(output: Any, dtype: torch.dtype) -> Any:
    """A VAE's output: a tuple, or an object with `latent_dist` or `latent`."""
    if isinstance(output, tuple):
        return tuple(_converted(each, dtype) for each in output)
    for name in ("latent_dist", "latent"):
        if hasattr(output, name):
            setattr(output, name, _converted(getattr(output, name), dtype))
    return output


def _converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype)
    value = copy.copy(value)
    for name in _TENSORS:
        if isinstance(getattr(value, name, None), Tensor):
            setattr(value, name, getattr(value, name).to(dtype))
    return value
