"""Replaces a pipeline's `vae.decode` by a decode that runs at once and returns the real frames.

Owns what every such replacement does: it binds the arguments, leaves to the VAE's own method what only that
one can decode, lets the calls of a decode in one piece through, and gives the frames the form that the
pipeline expects. `enable` decodes with it for a library's user, `decoding_in_place` for a caller who plans
each call.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor

from adaptive.families import family_of
from adaptive.pipelines.capture import decoder_output, replaced
from adaptive.pipelines.nested_calls import inside, is_inside
from adaptive.pipelines.recorded_call import RecordedDecode
from adaptive.pipelines.vae_method import BoundCall, bind
from adaptive.stream.engines.noise import noise_kept_at_failure
from adaptive.stream.inputs import needs_gradient
from adaptive.stream.offload import execution_device

DecodeCall = Callable[[RecordedDecode], Tensor]


def call_in_place(
    vae: Any,
    replacement: object,
    original: Callable[..., Any],
    video: Callable[[BoundCall], Tensor | None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """What `vae.decode(*args, **kwargs)` returns, its frames decoded by `video`.

    `video(call)` returns `[B, C, F, H, W]`, or None where the VAE's own method, `original`, is to decode.
    That one also gets calls that `replacement`, which must be marked by `inside`, makes itself.
    """
    call = bind(type(vae), "decode", args, kwargs)
    # The batched rung calls `vae.decode` again. The VAE raises its own error for wrong arguments.
    if call is not None and not is_inside(replacement):
        decoded = video(call)
        if decoded is not None:
            folded = decoded.transpose(1, 2).flatten(0, 1) if call.tensor.ndim == 4 else decoded
            return decoder_output(folded, call.return_dict)
    return original(*args, **kwargs)


def why_own_call(vae: Any, call: BoundCall) -> str | None:
    """Why only the VAE's own method can decode this call; None if the library can."""
    family = family_of(vae)
    if not family.is_known:
        return f"{type(vae).__name__} is not a VAE that the library knows"
    if call.tensor.ndim != 5 and not family.folds_frames:
        return f"latents of shape {tuple(call.tensor.shape)} are no video"
    if needs_gradient(vae, call.tensor, call.named):
        return "the call records gradients"
    return None


@contextmanager
def decoding_in_place(
    pipe: Any, decode: DecodeCall, encode: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Within the block, `decode(call)` returns the frames of each of the pipeline's `vae.decode` calls.

    They are `[B, C, F, H, W]` in the VAE's range, on any device; the pipeline gets them on the VAE's device
    in its dtype. No latents are kept and no random state is recorded: noise that the decoder injects comes
    from the default generators as they are, and these are put back if a decode fails. `encode`, if given,
    replaces `vae.encode`.
    """
    vae = pipe.vae
    original = vae.decode

    def video(call: BoundCall) -> Tensor | None:
        if why_own_call(vae, call) is not None:
            return None
        device = execution_device(vae)
        with inside(replacement), noise_kept_at_failure(device):
            return decode(RecordedDecode(call.tensor.detach(), (), call.named)).to(device, vae.dtype)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return call_in_place(vae, replacement, original, video, args, kwargs)

    encoding = nullcontext() if encode is None else replaced(vae, "encode", encode)
    with replaced(vae, "decode", replacement), encoding:
        yield
