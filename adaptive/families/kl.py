"""AutoencoderKL, the image VAE of I2VGen-XL, AnimateDiff, PIA and DynamiCrafter. Serves `AutoencoderKL`.

Frames are independent, so chunks of any size are exact. A frame can also be decoded in strips.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adaptive.families.shared.folded_family import (
    IMAGE_TRAITS,
    FoldedFamily,
    folded,
    stateless_engine,
    unfolded,
)

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State


class KlFamily(FoldedFamily):
    """`AutoencoderKL`."""

    name = "kl"
    proportional = True
    traits_from_config = replace(IMAGE_TRAITS, frames_independent=True)

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """Calls of `vae.decode` on any number of frames, or of its upper layers on strips."""
        from adaptive.stream.engines.planes import supports_strips

        decode = partial(self.decode_whole, vae, kwargs=kwargs)
        return (
            stateless_engine(decode) if kwargs or not supports_strips(vae.decoder) else _strips(vae, decode)
        )

    def strip_halo(self, vae: Any) -> float | None:
        """An upsampler and the residual block behind it reach three rows of the video."""
        from adaptive.stream.engines.planes import supports_strips

        return 3 / self.traits_of(vae).spatial_ratio if supports_strips(vae.decoder) else None


def _strips(vae: Any, decode: Any) -> Engine:
    from adaptive.stream.engines.engine import UNFINISHED_CHUNK, CallEngine
    from adaptive.stream.engines.planes import upper_layers

    class KlStrips(CallEngine):
        """The same as diffusers' `AutoencoderKL.decode` and `Decoder`, with the upper layers in strips."""

        def call(self, state: State, chunk: Tensor) -> tuple[Tensor, State]:
            """See `CallEngine.call`; nothing is kept between calls."""
            return decode(chunk), state

        def begin(self, state: State, chunk: Tensor, *, limit: int, ended: bool) -> State:  # noqa: ARG002 - no state
            """Up to the middle block, whose attention sees the whole picture."""
            latents = folded(chunk)
            if vae.post_quant_conv is not None:
                latents = vae.post_quant_conv(latents)
            decoder = vae.decoder
            hidden = decoder.mid_block(decoder.conv_in(latents), None)
            hidden = hidden.to(next(decoder.up_blocks.parameters()).dtype)
            return {UNFINISHED_CHUNK: hidden, "batch": chunk.shape[0]}

        def finish(self, state: State, rows: int) -> Iterator[tuple[Tensor | None, State]]:
            """All strips of all layers at once; a failed attempt starts again after the middle block."""
            hidden = state[UNFINISHED_CHUNK]
            frames = upper_layers(vae.decoder, hidden, -(-hidden.shape[2] // rows))
            yield unfolded(frames, state["batch"]), {}

    return KlStrips()


FAMILY = KlFamily()
