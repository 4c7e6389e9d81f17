"""Small stand-ins for tests of code that uses this library: a probe that says what a script says, a VAE of
real layers.

Owns nothing else; imports diffusers only where the VAE is made.
"""

from collections.abc import Callable, Sequence
from typing import Any

from adaptive.types import MeasuredPeak, MemoryReading


class ScriptedProbe:
    """A probe whose free bytes follow a script: the n-th read gets the n-th value, later ones the last.

    A callable is asked at every read with the number of reads before. It measures no peak.
    """

    noise_bytes = 0

    def __init__(self, free_bytes: Sequence[int] | Callable[[int], int], *, device: str = "cpu") -> None:
        self._free_bytes = free_bytes
        self._device = device
        self.reads = 0
        self.releases = 0

    def read(self) -> MemoryReading:
        """The script's next line."""
        script = self._free_bytes
        free = script(self.reads) if callable(script) else script[min(self.reads, len(script) - 1)]
        self.reads += 1
        return MemoryReading(self._device, free, 2**40, 0, 0, 0, "scripted")

    def reset_peak(self) -> None:
        """Nothing to reset."""

    def peak(self, held_bytes: int = 0) -> MeasuredPeak | None:  # noqa: ARG002 - as of a probe that measures
        """Not measured."""
        return None

    def release(self) -> None:
        """Counted only."""
        self.releases += 1


def small_ltx_vae(*, seed: int = 0, **config: Any) -> Any:
    """An `AutoencoderKLLTXVideo` of few and narrow layers, random weights, in evaluation mode on the CPU."""
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
