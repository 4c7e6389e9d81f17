"""Checks what a job passes from one stage to the next: latents, arguments of the decode, sound.

`Decoding` has the library check decoded frames. Must not know what happens to a job that fails a check.
"""

import torch
from torch import Tensor

from adaptive.errors import NonFiniteValues
from adaptive.pipelines.recorded_call import RecordedClip
from adaptive.stream.finite import check_finite
from app.jobs import Json

HALF = ("float16", "bfloat16")


def check_clip(clip: RecordedClip, stage: str) -> None:
    """Raise `NonFiniteValues` unless latents, tensors among the decode's arguments, and sound are finite.

    `stage` says where the clip comes from: "denoising", or "latents" for a file. That of sound is "sound".
    """
    for call in clip.calls:
        check_finite(call.latents, stage, "the latents")
        for name, value in call.kwargs.items():
            if isinstance(value, Tensor):
                check_finite(value, stage, f"the decode's argument {name}")
    if clip.sound is not None:
        check_finite(clip.sound.waveform, "sound", "the sound")


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name as models' entries write it, such as "float16"."""
    return str(dtype).removeprefix("torch.")


def found_json(error: NonFiniteValues) -> Json:
    """Stage, dtype and numbers of what was found, for events and the job's error."""
    return {"stage": error.stage, "dtype": error.dtype, "values": error.values, "of": error.of}
