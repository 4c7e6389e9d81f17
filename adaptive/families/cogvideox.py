"""CogVideoX: causal convolutions, and group norms over the frames of a chunk. Serves
`AutoencoderKLCogVideoX`.

Because of the norms, diffusers' own chunk schedule is part of the arithmetic. It decodes two latent frames at
a time (three first, if their number is odd) and encodes eight video frames at a time. The engines follow that
schedule, with caches that belong to the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.families.shared.family import Family, refuse_arguments
from adaptive.families.shared.traits import TraitsFromConfig, doubling_blocks, option
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State


class CogVideoXFamily(Family):
    """`AutoencoderKLCogVideoX`."""

    name = "cogvideox"
    proportional = True
    traits_from_config = TraitsFromConfig(
        latent_channels=option("latent_channels", 16),
        spatial_ratio=doubling_blocks(4),
        temporal_ratio=lambda config: int(config.get("temporal_compression_ratio", 4)),
    )

    def video_frames(self, traits: VaeTraits, latent_frames: int) -> int:
        """An odd number of latent frames begins with a frame alone, an even number does not."""
        if latent_frames % 2 == 0:
            return traits.temporal_ratio * latent_frames
        return traits.video_frames(latent_frames)

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The decoder on diffusers' chunk schedule."""
        refuse_arguments(vae, kwargs, "decoding")

        def decode(latents: Tensor, cache: Any) -> tuple[Tensor, Any]:
            if vae.post_quant_conv is not None:
                latents = vae.post_quant_conv(latents)
            return vae.decoder(latents, conv_cache=cache)  # type: ignore[no-any-return]

        return _scheduled(decode, vae.num_latent_frames_batch_size)

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The encoder on diffusers' chunk schedule; a video that is read in parts must have 8k+1 frames."""
        refuse_arguments(vae, kwargs, "encoding")

        def encode(frames: Tensor, cache: Any) -> tuple[Tensor, Any]:
            latents, cache = vae.encoder(frames, conv_cache=cache)
            return latents if vae.quant_conv is None else vae.quant_conv(latents), cache

        return _scheduled(encode, vae.num_sample_frames_batch_size)


def _scheduled(run: Any, size: int) -> Engine:
    """Engine of chunks of `size` frames; the first chunk also takes the remainder."""
    from adaptive.stream.engines.engine import CallEngine

    class Scheduled(CallEngine):
        """A step is one chunk of the schedule, whatever the caller asks for."""

        def take(self, position: int, wanted: int, total: int) -> int:  # noqa: ARG002 - the schedule decides
            """See `Engine.take`."""
            return min(total - position, size + total % size if position == 0 else size)

        def call(self, state: State, chunk: Tensor) -> tuple[Tensor, State]:
            """The network returns new caches and leaves the old ones alone."""
            if state and chunk.shape[2] != size:
                raise ValueError(
                    f"a chunk must have {size} frames, got {chunk.shape[2]}: pass a video whose number of "
                    f"frames is not {size}k+1 as one tensor, because the length decides the first chunk"
                )
            frames, cache = run(chunk, state.get("cache"))
            return frames, {"cache": _pruned(cache)}

    return Scheduled()


def _pruned(cache: Any) -> Any:
    """The cache without the entries of kernels of one frame: whole inputs that are never read again."""
    if isinstance(cache, dict):
        return {key: _pruned(part) for key, part in cache.items() if key not in ("conv_y", "conv_b")}
    return cache


FAMILY = CogVideoXFamily()
