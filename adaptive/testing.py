"""Fakes for tests of code that uses this library: a probe with scripted readings, and a small real VAE.

Imports torch and diffusers only to make the VAE.
"""

from collections.abc import Callable, Sequence
from typing import Any

from adaptive.types import MeasuredPeak, MemoryReading


class ScriptedProbe:
    """A probe whose free bytes follow a script: the n-th read returns the n-th value, later reads the last.
    So do its `split_bytes`.

    A callable gets the number of earlier reads and returns the free bytes. The probe measures no peak and
    counts its calls in `reads` and `releases`.
    """

    noise_bytes = 0

    def __init__(
        self,
        free_bytes: Sequence[int] | Callable[[int], int],
        *,
        device: str = "cpu",
        split_bytes: Sequence[int] = (0,),
    ) -> None:
        self._free_bytes = free_bytes
        self._split_bytes = split_bytes
        self._device = device
        self.reads = 0
        self.releases = 0

    def read(self) -> MemoryReading:
        """A reading with the script's next value as its free bytes."""
        script = self._free_bytes
        free = script(self.reads) if callable(script) else script[min(self.reads, len(script) - 1)]
        split = self._split_bytes[min(self.reads, len(self._split_bytes) - 1)]
        self.reads += 1
        return MemoryReading(self._device, free, 2**40, 0, 0, 0, "scripted", split)

    def reset_peak(self) -> None:
        """Do nothing: no peak is measured."""

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:  # noqa: ARG002 - the protocol's signature
        """None: no peak is measured."""
        return None

    def release(self) -> None:
        """Count the call."""
        self.releases += 1


def small_ltx_vae(*, seed: int = 0, **config: Any) -> Any:
    """An `AutoencoderKLLTXVideo` with few narrow layers and random weights, in evaluation mode on the CPU.

    `config` overrides values of its configuration. The same `seed` gives the same weights.
    """
    import torch
    from diffusers import AutoencoderKLLTXVideo

    narrow = {
        "latent_channels": 8,
        "block_out_channels": (8, 16, 16, 16),
        "decoder_block_out_channels": (8, 16, 16, 16),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKLLTXVideo(**{**narrow, **config}).eval()
