"""AutoencoderKL, the image VAE that I2VGen-XL, AnimateDiff, PIA and DynamiCrafter use: frames are
independent.

Pipelines fold the frames into the batch; here `[N, C, h, w]` is one video of N frames. Any grouping is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from adaptive.families.shared.family import Family
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State


class KlFamily(Family):
    """AutoencoderKL."""

    name = "kl"
    proportional = True
    folds_frames = True

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """Every block but the last doubles both sides."""
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("latent_channels", 4),
            spatial_ratio=2 ** (len(config.get("block_out_channels", (64,))) - 1),
            temporal_ratio=1,
            first_frame_alone=False,
            exact_streaming=True,
            frames_independent=True,
        )

    def as_video(self, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """`[N, C, h, w]` is one video of N frames."""
        video = latents.transpose(0, 1).unsqueeze(0) if latents.ndim == 4 else latents
        return super().as_video(video, kwargs)

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """Calls of the VAE itself, on some frames each; or its upper layers in strips."""
        return _decode_engine(self, vae, kwargs)

    def strip_halo(self, vae: Any) -> float | None:
        """An upsampler and the residual block behind it reach three rows of the video."""
        from adaptive.stream.engines.planes import strippable

        ratio = self.traits(type(vae).__name__, vae.config).spatial_ratio
        return 3 / ratio if strippable(vae.decoder) else None

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """Calls of the VAE itself, on some frames each."""
        return frames_encode_engine(vae, kwargs)

    def encode_whole(self, vae: Any, video: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One call on all frames folded into the batch, and unfolded again."""
        return encode_frames(vae, self.as_video(video, kwargs), kwargs)

    def decode_whole(self, vae: Any, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One call on all frames folded into the batch, and unfolded again."""
        video = self.as_video(latents, kwargs)
        folded = video.transpose(1, 2).flatten(0, 1)
        frames: Tensor = vae.decode(folded, **kwargs, return_dict=False)[0]
        return frames.reshape(video.shape[0], -1, *frames.shape[1:]).transpose(1, 2)


def _decode_engine(family: KlFamily, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
    from adaptive.stream.engines.engine import PICTURE, CallEngine
    from adaptive.stream.engines.planes import strippable, upper_layers

    class KlDecode(CallEngine):
        """Frame by frame or many: the same."""

        def call(self, state: State, chunk: Tensor) -> tuple[Tensor, State]:
            """No state."""
            return family.decode_whole(vae, chunk, kwargs), state

    class KlStrips(KlDecode):
        """What diffusers' `AutoencoderKL.decode` and `Decoder` do, the upper layers in strips."""

        def begin(self, state: State, chunk: Tensor, *, limit: int, ended: bool) -> State:  # noqa: ARG002 - stateless
            """Up to the middle block, whose attention sees the whole picture."""
            folded = chunk.transpose(1, 2).flatten(0, 1)
            if vae.post_quant_conv is not None:
                folded = vae.post_quant_conv(folded)
            decoder = vae.decoder
            hidden = decoder.mid_block(decoder.conv_in(folded), None)
            hidden = hidden.to(next(decoder.up_blocks.parameters()).dtype)
            return {PICTURE: hidden, "batch": chunk.shape[0]}

        def finish(self, state: State, rows: int) -> Iterator[tuple[Tensor | None, State]]:
            """All strips of all layers at once: what fails is begun again from the middle block's result."""
            hidden = state[PICTURE]
            frames = upper_layers(vae.decoder, hidden, -(-hidden.shape[2] // rows))
            yield frames.reshape(state["batch"], -1, *frames.shape[1:]).transpose(1, 2), {}

    return KlDecode() if kwargs or not strippable(vae.decoder) else KlStrips()


def encode_frames(vae: Any, video: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Parameters of the posterior of each frame, by one call on `[B*F, C, H, W]`, as `[B, 2C, F, h, w]`."""
    folded = video.transpose(1, 2).flatten(0, 1)
    parameters: Tensor = vae.encode(folded, **kwargs, return_dict=False)[0].parameters
    return parameters.reshape(video.shape[0], -1, *parameters.shape[1:]).transpose(1, 2)


def frames_encode_engine(vae: Any, kwargs: Mapping[str, Any]) -> Engine:
    """Engine of an encoder that sees single frames: any grouping is exact."""
    from adaptive.stream.engines.engine import CallEngine

    class FramesEncode(CallEngine):
        """Frame by frame or many: the same."""

        def call(self, state: State, chunk: Tensor) -> tuple[Tensor, State]:
            """No state."""
            return encode_frames(vae, chunk, kwargs), state

    return FramesEncode()


FAMILY = KlFamily()
