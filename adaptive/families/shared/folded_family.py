"""Base of families of image VAEs: the VAE takes a video's frames in the batch, and its encoder treats each
frame on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adaptive.families.shared.family import Family
from adaptive.families.shared.traits import TraitsFromConfig, doubling_blocks, option

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State

IMAGE_TRAITS = TraitsFromConfig(
    latent_channels=option("latent_channels", 4),
    spatial_ratio=doubling_blocks(1),
    temporal_ratio=lambda _: 1,
    first_frame_alone=False,
)


class FoldedFamily(Family):
    """Latents are `[B*F, C, h, w]` with `num_frames`, as the VAE takes them, or `[B, C, F, h, w]`.

    Without `num_frames`, `[N, C, h, w]` is one video of N frames.
    """

    folds_frames = True
    traits_from_config = IMAGE_TRAITS

    def as_video(self, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """`[B, C, F, h, w]`, a view."""
        if latents.ndim != 4:
            return super().as_video(latents, kwargs)
        frames = kwargs.get("num_frames") or latents.shape[0]
        return latents.reshape(-1, frames, *latents.shape[1:]).transpose(1, 2)

    def decode_whole(self, vae: Any, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One `vae.decode` of all frames folded into the batch."""
        video = self.as_video(latents, kwargs)
        frames: Tensor = vae.decode(folded(video), **kwargs, return_dict=False)[0]
        return unfolded(frames, video.shape[0])

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """Calls of `vae.encode` on any number of frames."""
        return stateless_engine(partial(self.encode_whole, vae, kwargs=kwargs))

    def encode_whole(self, vae: Any, video: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One `vae.encode` of all frames folded into the batch; the parameters are `[B, 2C, F, h, w]`."""
        video = self.as_video(video, kwargs)
        parameters: Tensor = vae.encode(folded(video), **kwargs, return_dict=False)[0].parameters
        return unfolded(parameters, video.shape[0])


def folded(video: Tensor) -> Tensor:
    """`[B, C, F, H, W]` to `[B*F, C, H, W]`."""
    return video.transpose(1, 2).flatten(0, 1)


def unfolded(frames: Tensor, batch: int) -> Tensor:
    """`[B*F, C, H, W]` to `[B, C, F, H, W]`."""
    return frames.reshape(batch, -1, *frames.shape[1:]).transpose(1, 2)


def stateless_engine(run: Callable[[Tensor], Tensor]) -> Engine:
    """Engine that calls `run` with any number of frames and keeps nothing between calls."""
    from adaptive.stream.engines.engine import CallEngine

    class Stateless(CallEngine):
        """Frames are independent, so any chunk is right."""

        def call(self, state: State, chunk: Tensor) -> tuple[Tensor, State]:
            """See `CallEngine.call`."""
            return run(chunk), state

    return Stateless()
