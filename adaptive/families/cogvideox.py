"""CogVideoX: norms over the frames of a chunk, so the VAE's own schedule of chunks is part of its arithmetic.

diffusers decodes two latent frames at a time (three first, where their number is odd) and encodes eight video
frames at a time. That schedule is the reference; it is reproduced here with caches that belong to the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State


class CogVideoXFamily(Family):
    """AutoencoderKLCogVideoX."""

    name = "cogvideox"
    proportional = True

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """Every block but the last doubles both sides; time is doubled as often as its ratio says."""
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("latent_channels", 16),
            spatial_ratio=2 ** (len(config.get("block_out_channels", (0,) * 4)) - 1),
            temporal_ratio=int(config.get("temporal_compression_ratio", 4)),
            first_frame_alone=True,
            exact_streaming=True,
            frames_independent=False,
        )

    def video_frames(self, traits: VaeTraits, latent_frames: int) -> int:
        """An even number of latent frames has no lone first frame."""
        if latent_frames % 2 == 0:
            return traits.temporal_ratio * latent_frames
        return traits.video_frames(latent_frames)

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The decoder on diffusers' schedule."""
        if kwargs:
            raise UnsupportedVae(type(vae).__name__, f"decoding with {', '.join(kwargs)}")

        def decode(latents: Tensor, cache: Any) -> tuple[Tensor, Any]:
            if vae.post_quant_conv is not None:
                latents = vae.post_quant_conv(latents)
            return vae.decoder(latents, conv_cache=cache)  # type: ignore[no-any-return]

        return _scheduled(decode, vae.num_latent_frames_batch_size)

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """The encoder on diffusers' schedule; a video read in parts is taken to have 8k+1 frames."""
        if kwargs:
            raise UnsupportedVae(type(vae).__name__, f"encoding with {', '.join(kwargs)}")

        def encode(frames: Tensor, cache: Any) -> tuple[Tensor, Any]:
            latents, cache = vae.encoder(frames, conv_cache=cache)
            return latents if vae.quant_conv is None else vae.quant_conv(latents), cache

        return _scheduled(encode, vae.num_sample_frames_batch_size)


def _scheduled(run: Any, size: int) -> Engine:
    """Engine of chunks of `size` frames, the first of which takes the remainder too."""
    from adaptive.stream.engines.engine import CallEngine

    class Scheduled(CallEngine):
        """One chunk of the schedule a step, whatever is wanted."""

        def take(self, position: int, wanted: int, total: int) -> int:  # noqa: ARG002 - not for the caller to choose
            """See above."""
            return min(total - position, size + total % size if position == 0 else size)

        def call(self, state: State, chunk: Tensor) -> tuple[Tensor, State]:
            """The network returns new caches and leaves the old ones alone."""
            if state and chunk.shape[2] != size:
                raise ValueError(
                    f"chunks are {size} frames, got {chunk.shape[2]}: a video whose number of frames is not "
                    f"{size}k+1 must be given as one tensor, for its first chunk depends on it"
                )
            frames, cache = run(chunk, state.get("cache"))
            return frames, {"cache": _pruned(cache)}

    return Scheduled()


def _pruned(cache: Any) -> Any:
    """The cache without what kernels of one frame left in it: whole inputs, which are never read again."""
    if isinstance(cache, dict):
        return {key: _pruned(part) for key, part in cache.items() if key not in ("conv_y", "conv_b")}
    return cache


FAMILY = CogVideoXFamily()
