"""The engine of a layer sweep, for decoders whose group norms span all frames of a video.

No chunk can go through such a decoder on its own. The first step therefore runs each layer over the whole
video, some frames at a time, with activations in host memory. Later steps run the last layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import State


class SweepEngine:
    """All latents go in with the first step; its `limit` is the number of frames on the device at a time.

    `sweep(latents, limit)` returns a state whose `"parked"` holds the input of the last layers;
    `finish(state, start, stop)` returns the video frames `start` to `stop`.
    """

    def __init__(
        self, sweep: Callable[[Tensor, int], State], finish: Callable[[State, int, int], Tensor]
    ) -> None:
        self._sweep = sweep
        self._finish = finish

    def take(self, position: int, wanted: int, total: int) -> int:  # noqa: ARG002 - all or none
        """All latents at once: they are small."""
        return total - position

    def advance(
        self,
        state: State,
        chunk: Tensor,
        *,
        limit: int,
        ended: bool,  # noqa: ARG002 - all latents come at once
    ) -> tuple[Tensor | None, State]:
        """See `Engine.advance`: the next `limit` frames."""
        if not state:
            state = {**self._sweep(chunk, limit), "next": 0}
        start = state["next"]
        stop = min(len(state["parked"]), start + limit)
        return self._finish(state, start, stop), {**state, "next": stop}

    def open(self) -> None:
        """See `Engine.open`: nothing is installed."""

    def close(self) -> None:
        """See `Engine.close`: nothing was installed."""


# Layers of torch in every decoder that is swept.
_OF_TORCH = frozenset({"Conv3d", "Dropout", "GroupNorm", "Identity", "Linear", "ModuleList"})
_ACTIVATIONS = frozenset({"GELU", "Mish", "ReLU", "SiLU"})
_PROCESSORS = frozenset({"AttnProcessor", "AttnProcessor2_0"})  # which differ in the operators they use


def check_sweep(vae: Any, layers: frozenset[str], *, attends: bool = False) -> None:
    """Raise `UnsupportedVae`, naming the layer, if a sweep could not do what `vae.decoder` does.

    A sweep runs the layers of known decoders itself: `layers` are their classes beside those of torch. Norms
    over time are computed without calling them. `attends`: the sweep computes the attention, too.
    """
    from adaptive.stream.layer_checks import check_processors, check_reimplemented

    decoder = getattr(vae.decoder, "_orig_mod", vae.decoder)  # torch.compile's wrapper is not called
    check_reimplemented(decoder, layers | _OF_TORCH | _ACTIVATIONS, "layer sweeps")
    if attends:
        check_processors(decoder, "Attention", _PROCESSORS)
