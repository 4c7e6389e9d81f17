"""Replaces a pipeline's `vae.encode` call, so that clips are encoded in chunks that fit.

Some pipelines encode a video of full length before they denoise (Wan conditions on the first frame followed
by grey frames). Owns the object that replaces `vae.encode`; `adaptive.decoding.encoder` encodes the clip.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from adaptive.decoding.encoder import AdaptiveEncoder, EncodePlan
from adaptive.device.out_of_memory import memory_failure
from adaptive.errors import DoesNotFit, NoDevice, UnsupportedVae
from adaptive.families import family_of
from adaptive.pipelines.nested_calls import inside, is_inside
from adaptive.pipelines.vae_method import bind
from adaptive.stream.inputs import needs_gradient


class AdaptiveEncodeCall:
    """Replaces `vae.encode`: clips go through `encoder`, all other calls through the VAE's own method.

    `plan` is the plan of the last clip, None before the first and where the VAE's own method encoded it.
    `refuses`: whether a clip that fits in no chunk raises `DoesNotFit`, and an out-of-memory of the smallest
    chunk its error; else such a clip goes through the VAE's own method.
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
            or not _is_planned(self._vae)
            or needs_gradient(self._vae, call.tensor)
        ):
            return self._original(*args, **kwargs)
        parameters = self._parameters(call.tensor)
        if parameters is None:  # outside of any handler, so that a failed encode's tensors are freed first
            return self._original(*args, **kwargs)
        return _encoder_output(parameters, call.return_dict)

    def _parameters(self, video: Tensor) -> Tensor | None:
        """Parameters of the posterior; None where the VAE's own method is to encode the clip."""
        self.plan = None
        try:
            with inside(self):
                encode = self._encoder.begin()
                if not encode.can_stream:
                    return None
                parameters, self.plan = encode.encode(video, "parameters")
                return parameters
        except (UnsupportedVae, NoDevice):
            return None
        except Exception as error:
            if self._refuses or not (isinstance(error, DoesNotFit) or memory_failure(error)):
                raise
        return None


def _is_planned(vae: Any) -> bool:
    family = family_of(vae)
    return family.is_known and family.has_variance


def _encoder_output(parameters: Tensor, return_dict: bool) -> Any:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

    posterior = DiagonalGaussianDistribution(parameters)
    return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)
