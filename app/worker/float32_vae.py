"""Loads a second copy of a model's VAE in float32, for a decode that half precision cannot do.

Owns the memory that is made for it. Must not know when one is needed (`app.worker.job.float32_retry`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from adaptive.errors import DoesNotFit
from app.config import Settings
from app.models.entries import ModelEntry
from app.models.loading import load_vae
from app.worker.decoding import DecodeContext
from app.worker.device_errors import OutOfMemory, translated_device_errors


class Float32Vae(NamedTuple):
    """A copy of the VAE in float32, and whether it decodes in chunks exactly."""

    vae: Any
    streams: bool


def load_in_float32(
    entry: ModelEntry,
    settings: Settings,
    device: torch.device,
    context: DecodeContext,
    *,
    needed_bytes: int,
    streams_exactly: Callable[[Any], bool],
) -> Float32Vae:
    """The VAE of `entry` on the device, its weights, `needed_bytes` in all, read in float32.

    Raises `DoesNotFit` if the device has no memory for it, also without idle weights, or if it is taken
    meanwhile; `ModelUnavailable`; and `OutOfMemory` where the memory is free and does not suffice.
    """

    def free_bytes() -> int:
        context.probe.release()
        return max(0, context.probe.read().free_bytes - settings.reserve_bytes)

    def copy() -> Float32Vae:
        in_float32 = entry.model_copy(update={"vae_dtype": "float32"})
        vae = load_vae(in_float32, settings).to(device, torch.float32)
        return Float32Vae(vae, streams_exactly(vae))

    failure: OutOfMemory | None = None
    idle = context.idle
    if free_bytes() < needed_bytes and idle is not None and idle.droppable_bytes:
        idle.drop()
    if (left_bytes := free_bytes()) >= needed_bytes:
        try:
            with translated_device_errors("decoding"):
                return copy()
        except OutOfMemory as error:
            failure = error
        if (left_bytes := free_bytes()) >= needed_bytes:
            raise failure
    what = "a copy of the VAE in float32"
    raise DoesNotFit(what, needed_bytes=needed_bytes, budget_bytes=left_bytes)
