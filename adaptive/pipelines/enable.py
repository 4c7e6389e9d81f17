"""Makes a diffusers pipeline decode and encode through this library: `enable(pipe)`.

`enable` replaces `decode` and `encode` on the VAE object, and `Attachment.detach` restores them. Modules,
their `forward` and accelerate's hooks are not touched. `capture(pipe)`, which records decode calls instead of
running them, is in `adaptive.pipelines.capture`. This module does not know jobs or files.
"""

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adaptive.families import family_of
from adaptive.pipelines.capture import capture, decoder_output
from adaptive.pipelines.recorded_call import RecordedDecode, load_calls, save_calls
from adaptive.stream import join_chunks
from adaptive.types import DecodeReport

if TYPE_CHECKING:
    from adaptive.decoding.decoder import AdaptiveDecoder
    from adaptive.decoding.encoder import EncodePlan
    from adaptive.pipelines.encode_call import AdaptiveEncodeCall

__all__ = ["Attachment", "RecordedDecode", "capture", "enable", "load_calls", "save_calls"]


class Attachment:
    """What `enable` returns: the last decode's report, the last clip's encode plan, and `detach`."""

    def __init__(self, vae: Any, decoder: "AdaptiveDecoder", encode: "AdaptiveEncodeCall") -> None:
        self._vae = vae
        self._decoder = decoder
        self._encode = encode
        self._original = vae.decode
        # `detach` restores attributes that were set on the object itself, such as a compiled method.
        self._replaced = {name: vars(vae)[name] for name in ("decode", "encode") if name in vars(vae)}
        self._active = False
        vae.decode = self._decode
        vae.encode = encode

    @property
    def report(self) -> DecodeReport:
        """Report of the last decode. `RuntimeError` before the first."""
        return self._decoder.report

    @property
    def encode_plan(self) -> "EncodePlan | None":
        """Plan of the last clip that the pipeline encoded; None where it has encoded none."""
        return self._encode.plan

    def detach(self) -> None:
        """Restore the VAE's own `decode` and `encode`."""
        if self._vae.__dict__.get("decode") == self._decode:
            del self._vae.decode, self._vae.encode
            vars(self._vae).update(self._replaced)

    def _decode(self, z: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        family = family_of(self._vae)
        named = decode_kwargs(type(self._vae), args, kwargs)
        # The batched rung calls `vae.decode` again. A 4-D call is a video only if the family folds its
        # frames.
        if self._active or (z.ndim != 5 and not family.folds_frames):
            return self._original(z, *args, return_dict=return_dict, **kwargs)
        self._active = True
        try:
            latents = family.as_video(z, named)
            traits = family.traits(type(self._vae).__name__, self._vae.config)
            total = family.video_frames(traits, latents.shape[2])
            video = join_chunks(self._decoder.frames(latents, **named), total)
            folded = video.transpose(1, 2).flatten(0, 1) if z.ndim == 4 else video
            return decoder_output(folded, return_dict)
        finally:
            self._active = False


def enable(pipe: Any, **policy: Any) -> Attachment:
    """Make a diffusers pipeline decode, and encode clips, in the memory that is free.

    `policy` are the fields of `adaptive.Policy` (`strategy`, `frames_per_chunk`, `exact_only`,
    `budget_bytes`, `reserve_bytes`, ...). Raises `TypeError` for an unknown field and `ValueError` for an
    invalid value. Calling it again replaces the policy. The VAE's slicing and tiling flags of diffusers are
    ignored: the plan decides.
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
    return Attachment(pipe.vae, AdaptiveDecoder(pipe.vae, policy=allowed, keeps_output=True), encode)


def decode_kwargs(vae_class: type, args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
    """Arguments of a decode call by name, positional ones included, without latents and `return_dict`."""
    parameters = inspect.signature(getattr(vae_class, "decode")).parameters  # noqa: B009 - unknown to mypy
    names = [name for name in parameters if name != "self"]
    named = dict(zip(names[1:], args, strict=False)) | dict(kwargs)
    named.pop("return_dict", None)
    return named
