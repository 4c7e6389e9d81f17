"""Makes a denoiser compute with fewer tensors at once, where it offers that: its feed-forward layers one row
after another, or its own attention slices.

Owns which switches a denoiser has, and the way back. Must not know when it is done. Attention itself is fused
in current networks, so that slices of it save nothing.
"""

from typing import Any

from torch import nn

SLICES = 4  # more save little: then other layers make the peak


def can_slice(denoiser: nn.Module) -> bool:
    """Whether the denoiser has such a switch."""
    return _has_own_slices(denoiser) or any(_feed_forwards(denoiser))


def slice_denoiser(denoiser: nn.Module) -> None:
    """Compute in slices; the result differs at most by the order in which kernels add numbers."""
    _set(denoiser, SLICES, 1)


def whole_denoiser(denoiser: nn.Module) -> None:
    """Undo `slice_denoiser`."""
    _set(denoiser, None, None)


def _set(denoiser: Any, slices: int | None, chunk_size: int | None) -> None:
    if _has_own_slices(denoiser):
        denoiser.set_attention_slice(slices)
    else:
        for each in _feed_forwards(denoiser):
            each.set_chunk_feed_forward(chunk_size, 0)


def _feed_forwards(denoiser: nn.Module) -> list[Any]:
    """Blocks whose feed-forward layers diffusers can run in chunks."""
    if not hasattr(denoiser, "enable_forward_chunking"):
        return []  # its blocks may have the switch and never look at it
    return [each for each in denoiser.modules() if hasattr(each, "set_chunk_feed_forward")]


def _has_own_slices(denoiser: nn.Module) -> bool:
    """Whether it is a network of Framefit's, whose switch takes a number of slices."""
    return hasattr(denoiser, "set_attention_slice") and not type(denoiser).__module__.startswith("diffusers")
