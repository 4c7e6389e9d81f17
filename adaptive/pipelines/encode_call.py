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
from adaptive.pipelines.vae_method import bind
from adaptive.stream.inputs import needs_gradient


class AdaptiveEncodeCall:
    """Replaces `vae.encode`: clips go through `encoder`, all other calls through the VAE's own method.

    `plan` is the plan of the last clip, None before the first.
    """

    def __init__(self, vae: Any, encoder: AdaptiveEncoder) -> None:
        self.plan: EncodePlan | None = None
        self._vae = vae
        self._encoder = encoder
        self._original: Callable[..., Any] = vae.encode
        self._active = False
        self._streams = _streams(vae)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of `vae.encode(x)`, for `[B, C, F, H, W]` or any other input that the VAE accepts."""
        call = bind(type(self._vae), "encode", args, kwargs)
        # Encoding in one chunk calls `vae.encode` again. The VAE's own call records gradients.
        if (
            self._active
            or call is None
            or call.named
            or not self._streams
            or call.tensor.ndim != 5
            or call.tensor.shape[2] == 1
            or needs_gradient(self._vae, call.tensor)
        ):
            return self._original(*args, **kwargs)
        self._active = True
        try:
            parameters, self.plan = self._encoder.encode(call.tensor, posterior="parameters")
        finally:
            self._active = False
        return _encoder_output(parameters, call.return_dict)


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
