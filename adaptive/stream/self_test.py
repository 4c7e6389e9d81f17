"""Check at load time that streaming a VAE gives the result of its own single call, on a very small latent."""

from __future__ import annotations

from typing import Any

import torch

from adaptive.device.accelerator import randomness_kept
from adaptive.device.out_of_memory import memory_failure
from adaptive.errors import UnsupportedVae
from adaptive.families import family_of
from adaptive.stream.decode_stream import open_decode
from adaptive.stream.offload import execution_device
from adaptive.stream.whole import decode_whole

# A wrong rule causes an error as large as the signal. A right one leaves rounding errors, far below these
# limits for all convolution algorithms (and TF32). The limit for float64 allows for norms that always use
# float32.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 5e-3}
_HALF_TOLERANCE = 5e-2
_SCHEDULE = (1, 2)


def self_test(vae: Any) -> None:
    """Compare streamed with batched decoding on random latents, in a fraction of a second.

    Leaves torch's random number generators as they were. Raises `UnsupportedVae` with the error if the
    results differ, or if the VAE cannot be streamed. An out-of-memory is raised unchanged.
    """
    shape, kwargs = family_of(vae).self_test_case(vae)
    device = execution_device(vae)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(shape, generator=generator).to(device, vae.dtype)
    with randomness_kept(device):
        torch.manual_seed(0)
        whole = decode_whole(vae, latents, **kwargs)
        torch.manual_seed(0)
        try:
            streamed = _streamed(vae, latents, kwargs)
        except (RuntimeError, AssertionError) as cause:
            if memory_failure(cause) is not None:
                raise
            raise UnsupportedVae(type(vae).__name__, f"exact streaming: {cause}") from cause
    scale = whole.abs().max().item() or 1.0
    error = (streamed - whole).abs().max().item() / scale if streamed.shape == whole.shape else float("inf")
    tolerance = _TOLERANCE.get(vae.dtype, _HALF_TOLERANCE)
    if not error <= tolerance:
        raise UnsupportedVae(
            type(vae).__name__,
            f"exact streaming: the self-test error is {error:.2g} of the signal's maximum, "
            f"above the allowed {tolerance:.2g}",
        )


def _streamed(vae: Any, latents: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    pieces: list[torch.Tensor] = []
    with open_decode(vae, latents, **kwargs) as stream:
        while not stream.finished:
            pieces.append(stream.step(_SCHEDULE[len(pieces) % len(_SCHEDULE)]))
    return torch.cat(pieces, 2)
