"""Where the library meets a diffusers pipeline: its VAE's `decode` is caught, or replaced.

`capture(pipe)` (see `adaptive.pipelines.capture`) records what the pipeline asks of its VAE and decodes
nothing. `enable(pipe)` makes the pipeline decode through `AdaptiveDecoder` in place. Both set attributes on
the VAE object and take them off again; modules, their `forward` and accelerate's hooks are not touched. Knows
nothing of jobs or files.
"""

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adaptive.families import family_of
from adaptive.pipelines.capture import capture, decoder_output
from adaptive.pipelines.recorded_call import RecordedDecode, load_calls, save_calls
from adaptive.stream import gathered
from adaptive.types import DecodeReport

if TYPE_CHECKING:
    from adaptive.decoding.decoder import AdaptiveDecoder
    from adaptive.decoding.encoder import EncodePlan
    from adaptive.pipelines.encode_call import AdaptiveEncodeCall

__all__ = ["Attachment", "RecordedDecode", "capture", "enable", "load_calls", "save_calls"]


class Attachment:
    """What `enable` left on a pipeline: the last decode's report, the last clip's encode plan, and the way
    back.
    """

    def __init__(self, vae: Any, decoder: "AdaptiveDecoder", encode: "AdaptiveEncodeCall") -> None:
        self._vae = vae
        self._decoder = decoder
        self._encode = encode
        self._original = vae.decode
        # What stands on the object itself, such as a compiled method, is put back there.
        self._replaced = {name: vars(vae)[name] for name in ("decode", "encode") if name in vars(vae)}
        self._inside = False
        vae.decode = self._decode
        vae.encode = encode

    @property
    def report(self) -> DecodeReport:
        """What the last decode did. `RuntimeError` before the first."""
        return self._decoder.report

    @property
    def encode_plan(self) -> "EncodePlan | None":
        """How the last clip that the pipeline encoded was encoded; None where it encoded none."""
        return self._encode.plan

    def detach(self) -> None:
        """Give the VAE its own `decode` and `encode` back."""
        if self._vae.__dict__.get("decode") == self._decode:
            del self._vae.decode, self._vae.encode
            vars(self._vae).update(self._replaced)

    def _decode(self, z: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        family = family_of(self._vae)
        named = decode_kwargs(type(self._vae), args, kwargs)
        # The batched rung calls the VAE's own decode; frames of a VAE not known may be no video.
        if self._inside or (z.ndim != 5 and not family.folds_frames):
            return self._original(z, *args, return_dict=return_dict, **kwargs)
        self._inside = True
        try:
            latents = family.as_video(z, named)
            traits = family.traits(type(self._vae).__name__, self._vae.config)
            total = family.video_frames(traits, latents.shape[2])
            video = gathered(self._decoder.frames(latents, **named), total)
            folded = video.transpose(1, 2).flatten(0, 1) if z.ndim == 4 else video
            return decoder_output(folded, return_dict)
        finally:
            self._inside = False


def enable(pipe: Any, **policy: Any) -> Attachment:
    """Make any diffusers pipeline decode, and encode clips, in the memory that is free:
    `adaptive.enable(pipe)`.

    `policy` are the fields of `adaptive.planning.planner.Policy` (`strategy`, `frames_per_chunk`,
    `exact_only`, `budget_bytes`, `reserve_bytes`, ...); an unknown one raises `TypeError`. Enabling again
    replaces the policy. diffusers' slicing and tiling flags of the VAE no longer matter: the plan decides.
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
    """A decode call's positional arguments under their names, beside its keyword arguments; `return_dict`
    dropped.
    """
    parameters = inspect.signature(getattr(vae_class, "decode")).parameters  # noqa: B009 - unknown to mypy
    names = [name for name in parameters if name != "self"]
    named = dict(zip(names[1:], args, strict=False)) | dict(kwargs)
    named.pop("return_dict", None)
    return named
