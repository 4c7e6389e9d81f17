"""What the inputs of a decode or encode may be: without gradients, and of the VAE's dtype.

Owns the checks and the errors. It does not know how a decode is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adaptive.device.out_of_memory import memory_failure
from adaptive.errors import DtypeMismatch
from adaptive.stream.state import tensors


def needs_gradient(vae: Any, *inputs: Any) -> bool:
    """Whether torch would record a call of `vae`: an input or a weight requires a gradient.

    Inputs may be nested in dictionaries, tuples and lists. False within `torch.no_grad()`.
    """
    if not torch.is_grad_enabled():
        return False
    return _requires_gradient(inputs) or any(weight.requires_grad for weight in vae.parameters())


def refuse_gradient(method: str, *inputs: Any) -> None:
    """Raise `ValueError` if gradients are recorded and one of `inputs` requires one.

    Weights that require a gradient are no reason: they do in every VAE that was just loaded.
    """
    if torch.is_grad_enabled() and _requires_gradient(inputs):
        raise ValueError(
            f"an input requires a gradient, and no gradient is recorded here: call vae.{method} instead, "
            "or detach the input"
        )


@contextmanager
def dtype_explained(vae: Any, name: str, tensor: Tensor) -> Iterator[None]:
    """Raise torch's error about a `tensor` of another dtype than the VAE's as `DtypeMismatch`.

    Dtypes are compared only after a failure: autocast, and VAEs of several dtypes, may accept the input.
    """
    try:
        yield
    except RuntimeError as error:
        own = vae.dtype
        if tensor.dtype == own or isinstance(error, torch.AcceleratorError) or memory_failure(error):
            raise
        raise DtypeMismatch(name, str(tensor.dtype), str(own), str(error)) from error


def _requires_gradient(inputs: Any) -> bool:
    return any(tensor.requires_grad for tensor in tensors(inputs))
