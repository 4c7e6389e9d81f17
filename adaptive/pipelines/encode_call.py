"""Replaces a pipeline's `vae.encode` call, so that clips are encoded in chunks that fit.

Some pipelines encode a video of full length before they denoise (Wan conditions on the first frame followed
by grey frames). Owns the object that replaces `vae.encode`; `adaptive.decoding.encoder` encodes the clip.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from adaptive.decoding.encoder import AdaptiveEncoder, EncodePlan
from adaptive.errors import UnsupportedVae
from adaptive.families import family_of


class AdaptiveEncodeCall:
    """Replaces `vae.encode`: clips go through `encoder`, all other inputs through the VAE's own method.

    `plan` is the plan of the last clip, None before the first.
    """

    def __init__(self, vae: Any, encoder: AdaptiveEncoder) -> None:
        self.plan: EncodePlan | None = None
        self._vae = vae
        self._encoder = encoder
        self._original: Callable[..., Any] = vae.encode
        self._active = False
        self._streams = _streams(vae)

    def __call__(self, x: Tensor, return_dict: bool = True, **kwargs: Any) -> Any:
        """The result of `vae.encode(x)`, for `[B, C, F, H, W]` or any other input that the VAE accepts."""
        is_clip = x.ndim == 5 and x.shape[2] > 1
        # Encoding in one chunk calls `vae.encode` again.
        if self._active or not is_clip or not self._streams or kwargs:
            return self._original(x, return_dict=return_dict, **kwargs)
        self._active = True
        try:
            parameters, self.plan = self._encoder.encode(x, posterior="parameters")
        finally:
            self._active = False
        return _encoder_output(parameters, return_dict)


def _streams(vae: Any) -> bool:
    family = family_of(vae)
    try:
        family.encode_engine(vae, {})
    except UnsupportedVae:
        return False
    return family.has_variance


def _encoder_output(parameters: Tensor, return_dict: bool) -> Any:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

    posterior = DiagonalGaussianDistribution(parameters)
    return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)
