"""A pipeline's own `vae.encode` of a clip, encoded as many frames at a time as fit.

Some pipelines encode a video as long as the one they make before they denoise (Wan conditions on the first
frame followed by grey). Owns what stands in for `vae.encode` then; how a clip is encoded is
`adaptive.decoding.encoder`'s business.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from adaptive.decoding.encoder import AdaptiveEncoder, EncodePlan
from adaptive.errors import UnsupportedVae
from adaptive.families import family_of


class AdaptiveEncodeCall:
    """Stands in for `vae.encode`: clips go through `encoder`, everything else through the VAE's own.

    `plan` is that of the last clip.
    """

    def __init__(self, vae: Any, encoder: AdaptiveEncoder) -> None:
        self.plan: EncodePlan | None = None
        self._vae = vae
        self._encoder = encoder
        self._original: Callable[..., Any] = vae.encode
        self._inside = False
        self._streams = _streams(vae)

    def __call__(self, x: Tensor, return_dict: bool = True, **kwargs: Any) -> Any:
        """What `vae.encode(x)` returns, of `[B, C, F, H, W]` or whatever else the VAE takes."""
        is_clip = x.ndim == 5 and x.shape[2] > 1
        # Encoding in one go calls the VAE's own `encode`.
        if self._inside or not is_clip or not self._streams or kwargs:
            return self._original(x, return_dict=return_dict, **kwargs)
        self._inside = True
        try:
            parameters, self.plan = self._encoder.encode(x, posterior="parameters")
        finally:
            self._inside = False
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
