"""Makes a diffusers pipeline decode and encode through this library: `enable(pipe)`.

`enable` replaces `decode` and `encode` on the VAE object, and `Attachment.detach` restores them. Modules,
their `forward` and accelerate's hooks are not touched. `capture(pipe)`, which records decode calls instead of
running them, is in `adaptive.pipelines.capture`. This module does not know jobs or files.
"""

import inspect
import logging
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adaptive.errors import DoesNotFit, UnsupportedVae
from adaptive.families import family_of
from adaptive.pipelines.capture import capture, decoder_output
from adaptive.pipelines.recorded_call import RecordedDecode, load_calls, save_calls
from adaptive.pipelines.vae_method import ReplacedMethods, bind
from adaptive.stream import join_chunks
from adaptive.stream.inputs import needs_gradient
from adaptive.types import DecodeReport

if TYPE_CHECKING:
    from adaptive.decoding.decoder import AdaptiveDecoder
    from adaptive.decoding.encoder import EncodePlan
    from adaptive.pipelines.encode_call import AdaptiveEncodeCall
    from adaptive.planning.planner import Policy

log = logging.getLogger(__name__)

__all__ = ["Attachment", "RecordedDecode", "capture", "enable", "load_calls", "save_calls"]


class Attachment:
    """What `enable` returns: the last decode's report, the last clip's encode plan, and `detach`."""

    def __init__(
        self, vae: Any, policy: "Policy", decoder: "AdaptiveDecoder", encode: "AdaptiveEncodeCall"
    ) -> None:
        self._vae = vae
        self._own_call_reason: str | None = None
        self._is_demanding = policy.forced or policy.budget_bytes is not None
        self._decoder = decoder
        self._encode = encode
        self._original = vae.decode
        self._active = False
        self._replaced = ReplacedMethods(vae, decode=self._decode, encode=encode)

    @property
    def report(self) -> DecodeReport:
        """Report of the last decode. `RuntimeError` before the first, and after one by the VAE's own call."""
        if self._own_call_reason is not None:
            raise RuntimeError(f"the VAE's own call decoded: {self._own_call_reason}")
        return self._decoder.report

    @property
    def encode_plan(self) -> "EncodePlan | None":
        """Plan of the last clip that the pipeline encoded; None where it has encoded none."""
        return self._encode.plan

    def detach(self) -> None:
        """Restore the VAE's own `decode` and `encode`."""
        self._replaced.restore()

    def _decode(self, *args: Any, **kwargs: Any) -> Any:
        family = family_of(self._vae)
        call = bind(type(self._vae), "decode", args, kwargs)
        # The batched rung calls `vae.decode` again. A 4-D call is a video only if the family folds its
        # frames. The VAE's own call records gradients, and raises its own error for wrong arguments.
        if (
            self._active
            or call is None
            or (call.tensor.ndim != 5 and not family.folds_frames)
            or needs_gradient(self._vae, call.tensor, call.named)
        ):
            return self._original(*args, **kwargs)
        z, named = call.tensor, call.named
        video = self._video(family, z, named)
        if video is None:
            return self._original(*args, **kwargs)
        folded = video.transpose(1, 2).flatten(0, 1) if z.ndim == 4 else video
        return decoder_output(folded, call.return_dict)

    def _video(self, family: Any, z: Tensor, named: dict[str, Any]) -> Tensor | None:
        """The decoded video `[B, C, F, H, W]`, or None if the VAE's own call has to decode it.

        Without a forced strategy or a budget, a decode that cannot be planned or streamed must not fail where
        the pipeline alone would have tried it.
        """
        self._active = True
        try:
            latents = family.as_video(z, named)
            traits = family.traits(type(self._vae).__name__, self._vae.config)
            total = family.video_frames(traits, latents.shape[2])
            video = join_chunks(self._decoder.frames(latents, **named), total)
        except (DoesNotFit, UnsupportedVae) as error:
            if self._is_demanding:
                raise
            self._own_call_reason = str(error)
            log.warning("own_call_decodes vae=%s reason=%s", type(self._vae).__name__, error)
            return None
        finally:
            self._active = False
        self._own_call_reason = None
        return video


def enable(pipe: Any, **policy: Any) -> Attachment:
    """Make a diffusers pipeline decode, and encode clips, in the memory that is free.

    `policy` are the fields of `adaptive.Policy` (`strategy`, `frames_per_chunk`, `exact_only`,
    `budget_bytes`, `reserve_bytes`, ...). Raises `TypeError` for an unknown field and `ValueError` for an
    invalid value. Calling it again replaces the policy. The VAE's slicing and tiling flags of diffusers are
    ignored: the plan decides. If no option fits or the VAE cannot be streamed, and the policy forces no
    strategy and no budget, the VAE's own call decodes and a warning tells why. A call that must record
    gradients (grad mode is on, and the input or a weight of the VAE requires one) is left to the VAE, as are
    copies of the VAE.
    """
    from adaptive.decoding.decoder import AdaptiveDecoder
    from adaptive.decoding.encoder import AdaptiveEncoder
    from adaptive.pipelines.encode_call import AdaptiveEncodeCall
    from adaptive.planning.planner import Policy

    previous = getattr(pipe.vae.__dict__.get("decode"), "__self__", None)
    if isinstance(previous, Attachment):
        previous.detach()
    allowed = Policy(**policy)
    encode = AdaptiveEncodeCall(pipe.vae, AdaptiveEncoder(pipe.vae, policy=allowed))
    decoder = AdaptiveDecoder(pipe.vae, policy=allowed, keeps_output=True)
    return Attachment(pipe.vae, allowed, decoder, encode)


def decode_kwargs(vae_class: type, args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
    """Arguments of a decode call by name, positional ones included, without latents and `return_dict`."""
    parameters = inspect.signature(getattr(vae_class, "decode")).parameters  # noqa: B009 - unknown to mypy
    names = [name for name in parameters if name != "self"]
    named = dict(zip(names[1:], args, strict=False)) | dict(kwargs)
    named.pop("return_dict", None)
    return named
