"""Makes a diffusers pipeline decode and encode through this library: `enable(pipe)`.

`enable` replaces `decode` and `encode` on the VAE object, and `Attachment.detach` restores them. Modules,
their `forward` and accelerate's hooks are not touched. `capture(pipe)`, which records decode calls instead of
running them, is in `adaptive.pipelines.capture`. This module does not know jobs or files.
"""

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adaptive.device.out_of_memory import memory_failure
from adaptive.errors import DecodeOutOfMemory, DoesNotFit, NoDevice, UnsupportedVae
from adaptive.families import family_of
from adaptive.pipelines.capture import capture
from adaptive.pipelines.in_place import call_in_place, why_own_call
from adaptive.pipelines.nested_calls import inside
from adaptive.pipelines.progress_bar import DecodeBar
from adaptive.pipelines.recorded_call import RecordedDecode, load_calls, save_calls
from adaptive.pipelines.vae_method import BoundCall, ReplacedMethods
from adaptive.stream import join_chunks, video_frames_of
from adaptive.stream.engines.noise import noise_kept_at_failure
from adaptive.stream.offload import splits_itself
from adaptive.types import DecodePlan, DecodeReport, LatentShape

if TYPE_CHECKING:
    from adaptive.decoding.decoder import AdaptiveDecoder
    from adaptive.decoding.encoder import EncodePlan
    from adaptive.decoding.one_decode import OneDecode
    from adaptive.pipelines.encode_call import AdaptiveEncodeCall
    from adaptive.planning.planner import Policy

log = logging.getLogger(__name__)

__all__ = ["Attachment", "RecordedDecode", "capture", "enable", "load_calls", "save_calls"]


class Attachment:
    """What `enable` returns: the last decode's report, the last clip's encode plan, and `detach`."""

    def __init__(
        self,
        vae: Any,
        policy: "Policy",
        decoder: "AdaptiveDecoder",
        encode: "AdaptiveEncodeCall",
        bar: DecodeBar | None = None,
    ) -> None:
        self._vae = vae
        self._policy = policy
        self._decoder = decoder
        self._encode = encode
        self._bar = bar
        self._original = vae.decode
        self._report: DecodeReport | None = None
        self.own_call_reason: str | None = None
        """Why the last decode went to the VAE's own method, with its own settings; None where it did not."""
        self._replaced = ReplacedMethods(vae, decode=self._decode, encode=encode)

    @property
    def report(self) -> DecodeReport:
        """Report of the last decode. `RuntimeError` before the first, and after one by the VAE's own method
        (see `own_call_reason`).
        """
        if self._report is None:
            why = self.own_call_reason or "consume all frames of one before reading its report"
            raise RuntimeError(f"no decode has finished: {why}")
        return self._report

    @property
    def encode_plan(self) -> "EncodePlan | None":
        """Plan of the last clip that was encoded; None where there is none, or the VAE's own method ran."""
        return self._encode.plan

    def detach(self) -> None:
        """Restore the VAE's own `decode` and `encode`."""
        self._replaced.restore()

    def _decode(self, *args: Any, **kwargs: Any) -> Any:
        return call_in_place(self._vae, self, self._original, self._video, args, kwargs)

    def _video(self, call: BoundCall) -> Tensor | None:
        """The decoded video `[B, C, F, H, W]`; None where the VAE's own method is to decode it."""
        from adaptive.decoding.one_decode import shape_of

        why = why_own_call(self._vae, call)
        if why is not None:
            self._own(why)
            return None
        named = call.named
        latents = family_of(self._vae).as_video(call.tensor, named)
        total = video_frames_of(self._vae, latents.shape[2])
        try:
            with inside(self):
                decode = self._decoder.begin(**named)
                plan = self._plan(decode, shape_of(latents))
                if plan is None:
                    return None
                shown = nullcontext() if self._bar is None else self._bar.shown(total)
                with noise_kept_at_failure(decode.device), shown:
                    video = join_chunks(decode.frames(latents, plan), total)
        except Exception as error:
            if _is_demanding(self._policy) or not _may_be_better_alone(error):
                raise
            reason = str(error)
        else:
            self._report, self.own_call_reason = decode.report, None
            return video
        self._own(reason)  # outside of the handler, so that a failed decode's tensors are freed first
        return None

    def _plan(self, decode: "OneDecode", shape: LatentShape) -> DecodePlan | None:
        """The plan, or the rung that needs least: the VAE's own call may need more than it. None where tiles
        or slices, which may need less, are switched on for the own call.
        """
        try:
            return decode.plan(shape)
        except DoesNotFit as error:
            if _is_demanding(self._policy):
                raise
            if splits_itself(self._vae):
                self._own(str(error))
                return None
        return decode.least_plan(shape)

    def _own(self, why: str) -> None:
        self._report, self.own_call_reason = None, why
        log.info("own_decode vae=%s reason=%s", type(self._vae).__name__, why)


def _may_be_better_alone(error: Exception) -> bool:
    """Whether the VAE's own method, with its own settings, may do what has failed with this error.

    If it fails as well, its error is the one that the VAE would have raised without this library.
    """
    known = DecodeOutOfMemory, NoDevice, UnsupportedVae
    return isinstance(error, known) or memory_failure(error) is not None


def _is_demanding(policy: "Policy") -> bool:
    """Whether the caller has asked for more than a decode that succeeds: a strategy, or a limit of memory."""
    return policy.forced or policy.budget_bytes is not None


def enable(pipe: Any, *, progress: bool = False, **policy: Any) -> Attachment:
    """Make a diffusers pipeline decode, and encode clips, in the memory that is free.

    `policy` are the fields of `adaptive.Policy` (`strategy`, `frames_per_chunk`, `exact_only`,
    `budget_bytes`, `reserve_bytes`, ...). Raises `TypeError` for an unknown field and `ValueError` for an
    invalid value. Calling it again replaces the policy.

    With `progress`, each planned decode shows a bar of its frames, in notebooks and terminals, by the
    pipeline's `progress_bar` (`pipe.set_progress_bar_config`).

    The VAE is looked at anew for each decode, so it may be moved, cast, offloaded or compiled afterwards. Its
    slicing and tiling flags of diffusers are ignored: the plan decides. A VAE that the library does not know
    is left as it is. Unless the policy forces a strategy or a budget, nothing is refused: if nothing is
    predicted to fit, the rung that needs least is tried, and where that fails, or no plan can be made, the
    VAE's own method decodes with its own settings (`Attachment.own_call_reason`). A call that must record
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
    family_of(pipe.vae)  # raises for a VAE whose class is hidden
    encoder = AdaptiveEncoder(pipe.vae, policy=allowed, shares_costs=True)
    encode = AdaptiveEncodeCall(pipe.vae, encoder, refuses=_is_demanding(allowed))
    bar = DecodeBar(pipe) if progress else None
    decoder = AdaptiveDecoder(pipe.vae, policy=allowed, on_event=bar, keeps_output=True, shares_costs=True)
    return Attachment(pipe.vae, allowed, decoder, encode, bar)
