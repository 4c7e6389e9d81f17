"""Records a pipeline's `vae.decode` calls instead of running them.

`capture(pipe)` gives the pipeline placeholders instead of frames. The pipeline's own de-normalisation,
timestep and noise handling still applies, and the decode, which needs most memory, can run later, elsewhere,
or again after a crash. A placeholder's values encode which frame it represents. `kept_frames` reads them from
the pipeline's output: frames that the pipeline drops are dropped from the real video too, and a pipeline that
changes frames is refused.

Capturing sets one attribute on the VAE object and removes it again. Modules, their `forward` and accelerate's
hooks are not touched. This module does not know jobs or files.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from adaptive.device.accelerator import random_states
from adaptive.errors import UnsupportedVae
from adaptive.families import family_of
from adaptive.pipelines.real_frames import needs_real_frames
from adaptive.pipelines.recorded_call import RecordedDecode
from adaptive.pipelines.vae_method import bind

# A placeholder encodes frame and call numbers as steps of this size between -1 and 1. They stay exact in
# float32 and through the pipeline's `x / 2 + 0.5`.
_STEPS = 2**16
_TOLERANCE = 0.01


def check_capturable(pipe_class: str) -> None:
    """Raise `UnsupportedVae`, naming the pipeline class, if it needs decoded frames before it ends."""
    why = needs_real_frames(pipe_class)
    if why is not None:
        raise UnsupportedVae(pipe_class, f"captured decoding: it {why}; `enable` decodes it in place")


@contextmanager
def capture(pipe: Any, encode: Callable[..., Any] | None = None) -> Iterator[list[RecordedDecode]]:
    """Record the pipeline's decode calls instead of running them.

    Run the pipeline inside the block. Yields the list to which each call is appended, in order. For each call
    the pipeline gets a placeholder `[B, C, F, 1, 1]` on the CPU (`[N, C, 1, 1]` for VAEs that decode single
    frames) with the right number of frames, which its post-processing accepts. Pass the pipeline's output to
    `kept_frames` to find the frames that it kept. The recorded latents stay on their device. `encode`, if
    given, replaces `vae.encode` within the block.

    Raises `UnsupportedVae`, naming the pipeline, if it needs decoded frames before it ends.
    """
    check_capturable(type(pipe).__name__)
    vae = pipe.vae
    calls: list[RecordedDecode] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        call = bind(type(vae), "decode", args, kwargs)
        if call is None:
            raise TypeError(f"{type(vae).__name__}.decode does not take these arguments")
        z = call.tensor
        calls.append(RecordedDecode(z.detach(), (), call.named, random_states(z.device)))
        return decoder_output(_placeholder(vae, z, len(calls) - 1), call.return_dict)

    encoding = nullcontext() if encode is None else replaced(vae, "encode", encode)
    with replaced(vae, "decode", record), encoding:
        yield calls


def kept_frames(calls: Sequence[RecordedDecode], output: Any, pipe_class: str) -> list[RecordedDecode]:
    """The calls, each with the range of its frames that the pipeline kept (`RecordedDecode.keep`).

    `output` are the frames that the pipeline returned under `capture` with `output_type="pt"`: `[B, F, C, 1,
    1]` or a list of `[F, C, 1, 1]`. Raises `UnsupportedVae`, naming the pipeline, if they are not
    placeholders in their order: the pipeline then processes frames in a way that cannot be repeated on the
    real ones.
    """
    counts = torch.stack(list(output)).float()[0, :, :, 0, 0] * _STEPS - 1
    numbers = counts.round().int()
    if not calls or (counts - numbers).abs().max() > _TOLERANCE:
        raise UnsupportedVae(pipe_class, "captured decoding: it changes frames after decoding them")
    frames = numbers[:, 0].tolist()
    owners = numbers[:, 1].tolist() if numbers.shape[1] > 1 else [0] * len(frames)
    runs = [
        (owner, [frame for _, frame in run])
        for owner, run in groupby(zip(owners, frames, strict=True), lambda one: one[0])
    ]
    follow = all(run == list(range(run[0], run[0] + len(run))) for _, run in runs)
    if not follow or any(first[0] >= second[0] for first, second in pairwise(runs)):
        raise UnsupportedVae(pipe_class, "captured decoding: it reorders frames after decoding them")
    return [replace(calls[owner], keep=(run[0], run[-1] + 1)) for owner, run in runs]


def _placeholder(vae: Any, z: Tensor, call: int) -> Tensor:
    """Frames with their own number in the first channel and the call's number in the second."""
    family = family_of(vae)
    folded = z.ndim == 4
    traits = family.traits(type(vae).__name__, vae.config)
    count = z.shape[0] if folded else family.video_frames(traits, z.shape[2])
    batch = 1 if folded else z.shape[0]
    frames = torch.zeros(batch, family.video_channels(vae.config), count, 1, 1)
    frames[:, 0, :, 0, 0] = _encoded(torch.arange(count))
    frames[:, 1:2] = _encoded(torch.tensor(call))
    return frames[0].transpose(0, 1) if folded else frames


def _encoded(number: Tensor) -> Tensor:
    return (number + 1) / _STEPS * 2 - 1


@contextmanager
def replaced(vae: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Replace the VAE object's method `name` by `method` within the block."""
    absent = object()
    before = vae.__dict__.get(name, absent)
    setattr(vae, name, method)
    try:
        yield
    finally:
        if before is absent:
            delattr(vae, name)
        else:
            setattr(vae, name, before)


def decoder_output(sample: Tensor, return_dict: bool) -> Any:
    """`sample` in the form that `vae.decode` returns: a `DecoderOutput`, or a tuple without `return_dict`."""
    from diffusers.models.autoencoders.vae import DecoderOutput

    return DecoderOutput(sample=sample) if return_dict else (sample,)
