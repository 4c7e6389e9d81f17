"""What a VAE family must say of itself. Torch-free: tensors appear only in signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.chunk_pass import Tick
    from adaptive.stream.engines.engine import Engine


class Family:
    """Base of all families; what it does not override is what holds for a VAE nothing is known of."""

    name = "unknown"
    has_variance = True  # whether the posterior's parameters are means and log-variances, or means alone
    folds_frames = False  # whether `vae.decode` takes a video's frames in the batch, `[N, C, h, w]`
    # Whether a decode's bytes are exactly proportional to the picture's area. Not where padded copies of
    # frames are made, whose borders weigh more the smaller the picture is.
    proportional = False
    parks_activations = False  # in host memory, between the layers of a sweep

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """Shape rules and abilities of a VAE of this family, from its configuration alone."""
        raise NotImplementedError

    def video_frames(self, traits: VaeTraits, latent_frames: int) -> int:
        """Video frames that a decode of `latent_frames` gives."""
        return traits.video_frames(latent_frames)

    def video_channels(self, config: Mapping[str, Any]) -> int:
        """Channels of the decoded video."""
        return int(config.get("out_channels", 3))

    def as_video(self, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:  # noqa: ARG002 - for families
        """Latents as `[B, C, T, h, w]`, from the layout that `vae.decode` takes (a view)."""
        if latents.ndim != 5:
            raise ValueError(f"latents must be [B, C, T, h, w], got shape {tuple(latents.shape)}")
        return latents

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:  # noqa: ARG002 - what families override
        """Engine of one exact streamed decode; `kwargs` are those of `vae.decode`.

        Raises `UnsupportedVae` where this VAE cannot be streamed.
        """
        raise UnsupportedVae(type(vae).__name__, "decoding in chunks")

    def strip_halo(self, vae: Any) -> float | None:  # noqa: ARG002 - for families
        """Latent rows beside a strip that its pixels depend on; None where there are no exact strips.

        Where there are, `decode_engine` gives a `StripwiseEngine`.
        """
        return None

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:  # noqa: ARG002 - for families
        """Engine of one exact streamed encode, giving the posterior's parameters `[B, 2C, t, h, w]` (`[B, C,
        t, h, w]` without `has_variance`).

        Raises `UnsupportedVae` where this VAE cannot be streamed.
        """
        raise UnsupportedVae(type(vae).__name__, "encoding in chunks")

    def encode_whole(self, vae: Any, video: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Parameters of the posterior by the VAE's own one call, with slicing and tiling already held off."""
        parameters: Tensor = vae.encode(video, **kwargs, return_dict=False)[0].parameters
        return parameters

    def decode_whole(self, vae: Any, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """The VAE's own one call, with slicing and tiling already held off."""
        frames: Tensor = vae.decode(latents, **kwargs, return_dict=False)[0]
        return frames

    def clean_kwargs(self, vae: Any) -> dict[str, Any]:  # noqa: ARG002 - for families
        """What `vae.decode` needs beside latents that carry no noise, as those of an encoded clip."""
        return {}

    def self_test_case(self, vae: Any) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Shape of the smallest latent worth testing, and the keyword arguments that `vae.decode` needs with
        it."""
        channels = self.traits(type(vae).__name__, vae.config).latent_channels
        return (1, channels, 4, 2, 2), {}


def activation(tick: Tick, module: Any, forward: Any, frames: Tensor) -> Tensor:  # noqa: ARG001 - a rule
    """Rule of activations in front of temporal layers: that layer is all that looks at their result."""
    return tick.spending.offer(forward(frames))
