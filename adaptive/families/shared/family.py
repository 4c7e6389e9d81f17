"""The base class of all VAE families: what a family states about its VAEs, and the defaults.

Imports no torch: tensors appear in signatures only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.traits import TraitsFromConfig
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine


class Family:
    """Base of all families. The defaults hold for a VAE that nothing is known about."""

    name = "unknown"
    is_known = True  # False: nothing is known about the VAE, and its settings are left as they are
    traits_from_config: TraitsFromConfig  # how the traits follow from the configuration
    has_variance = True  # the posterior's parameters are means and log-variances; False: means alone
    folds_frames = False  # `vae.decode` takes a video's frames in the batch, `[N, C, h, w]`
    # The bytes of a decode are exactly proportional to the picture's area. False for layers that make padded
    # copies of frames: their borders weigh more in a small picture.
    proportional = False
    # `vae.decode` sends one latent frame after another through the network: from the third on, a frame adds
    # its latents and its video to the peak, nothing else.
    batched_by_frame = False
    parks_activations = False  # a layer sweep keeps activations in host memory between layers

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """Shape rules and abilities of a VAE of this family, from its configuration alone."""
        return self.traits_from_config.traits(self.name, vae_class, config)

    def traits_of(self, vae: Any) -> VaeTraits:
        """Traits of a live VAE."""
        return self.traits(type(vae).__name__, vae.config)

    def video_frames(self, traits: VaeTraits, latent_frames: int) -> int:
        """Number of video frames that `latent_frames` decode to."""
        return traits.video_frames(latent_frames)

    def video_channels(self, config: Mapping[str, Any]) -> int:
        """Number of channels of the decoded video."""
        return int(config.get("out_channels", 3))

    def as_video(self, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:  # noqa: ARG002 - for families
        """Latents as `[B, C, T, h, w]`: a view of what `vae.decode` takes.

        Raises `ValueError` for any other number of dimensions.
        """
        if latents.ndim != 5:
            raise ValueError(f"latents must be [B, C, T, h, w], got shape {tuple(latents.shape)}")
        return latents

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:  # noqa: ARG002 - for families
        """Engine of one exact streamed decode; `kwargs` are those of `vae.decode`.

        Raises `UnsupportedVae` if this VAE cannot be streamed with these arguments.
        """
        raise UnsupportedVae(type(vae).__name__, "decoding in chunks")

    def strip_halo(self, vae: Any) -> float | None:  # noqa: ARG002 - for families
        """Number of latent rows on each side of a strip that its pixels depend on; None: no exact strips.

        If it is a number, `decode_engine` returns a `StripwiseEngine`.
        """
        return None

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:  # noqa: ARG002 - for families
        """Engine of one exact streamed encode; `kwargs` are those of `vae.encode`.

        It gives the posterior's parameters `[B, 2C, t, h, w]` (`[B, C, t, h, w]` without `has_variance`).
        Raises `UnsupportedVae` if this VAE cannot be streamed with these arguments.
        """
        raise UnsupportedVae(type(vae).__name__, "encoding in chunks")

    def encode_whole(self, vae: Any, video: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Parameters of the posterior by one `vae.encode`. The caller has switched off slicing and tiling."""
        parameters: Tensor = vae.encode(video, **kwargs, return_dict=False)[0].parameters
        return parameters

    def decode_whole(self, vae: Any, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """The video by one `vae.decode`. The caller has switched off slicing and tiling."""
        frames: Tensor = vae.decode(latents, **kwargs, return_dict=False)[0]
        return frames

    def clean_kwargs(self, vae: Any) -> dict[str, Any]:  # noqa: ARG002 - for families
        """Arguments of `vae.decode` for latents without noise, such as those of an encoded clip."""
        return {}

    def self_test_case(self, vae: Any) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Shape of the smallest latents worth testing, and the arguments of `vae.decode` for them."""
        return (1, self.traits_of(vae).latent_channels, 4, 2, 2), {}


def refuse_arguments(vae: Any, arguments: Iterable[str], action: str) -> None:
    """Raise `UnsupportedVae` if there are `arguments`, which the engine would have to ignore."""
    names = ", ".join(arguments)
    if names:
        raise UnsupportedVae(type(vae).__name__, f"{action} in chunks with the arguments {names}")
