"""Replaces a pipeline's `vae.encode` call, so that clips are encoded in chunks that fit.

Some pipelines encode a video of full length before they denoise (Wan conditions on the first frame followed
by grey frames). Owns the object that replaces `vae.encode`; `adaptive.decoding.encoder` encodes the clip.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from adaptive.decoding.encoder import AdaptiveEncoder, EncodePlan
from adaptive.errors import DoesNotFit, NoDevice, UnsupportedVae
from adaptive.families import family_of
from adaptive.pipelines.nested_calls import inside, is_inside
from adaptive.pipelines.vae_method import bind
from adaptive.stream.inputs import needs_gradient
from adaptive.stream.vae_view import encodes_in_chunks


class AdaptiveEncodeCall:
    """Replaces `vae.encode`: clips go through `encoder`, all other calls through the VAE's own method.

    `plan` is the plan of the last clip, None before the first. `refuses`: whether a clip that fits in no
    chunk raises `DoesNotFit`; else it goes through the VAE's own method.
    """

    def __init__(self, vae: Any, encoder: AdaptiveEncoder, *, refuses: bool = True) -> None:
        self.plan: EncodePlan | None = None
        self._vae = vae
        self._encoder = encoder
        self._refuses = refuses
        self._original: Callable[..., Any] = vae.encode

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of `vae.encode(x)`, for `[B, C, F, H, W]` or any other input that the VAE accepts."""
        call = bind(type(self._vae), "encode", args, kwargs)
        # Encoding in one chunk calls `vae.encode` again. The VAE's own call records gradients.
        if (
            is_inside(self)
            or call is None
            or any(value is not None for value in call.named.values())
            or call.tensor.ndim != 5
            or call.tensor.shape[2] == 1
            or needs_gradient(self._vae, call.tensor)
            or not _streams(self._vae)
        ):
            return self._original(*args, **kwargs)
        try:
            with inside(self):
                parameters, self.plan = self._encoder.encode(call.tensor, posterior="parameters")
        except (UnsupportedVae, NoDevice):
            return self._original(*args, **kwargs)
        except DoesNotFit:
            if self._refuses:
                raise
            return self._original(*args, **kwargs)
        return _encoder_output(parameters, call.return_dict)


def _streams(vae: Any) -> bool:
    return family_of(vae).has_variance and encodes_in_chunks(vae)


def _encoder_output(parameters: Tensor, return_dict: bool) -> Any:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

    posterior = DiagonalGaussianDistribution(parameters)
    return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)
