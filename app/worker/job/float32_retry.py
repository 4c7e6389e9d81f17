"""Decodes once more in float32 what gave values that are not finite in half precision.

Half precision overflows where float32 does not: float16 ends at 65,504. The second decode begins anew, so
that all frames of a video have one precision. Its pixels are exact by the usual rule, with float32 as the
dtype: they are those of one call of the VAE in float32. In the model's own dtype there is nothing to compare
with.

Decides when a decode is repeated, and reports it in events and errors. Must not know the job table.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

from adaptive.errors import DoesNotFit, NonFiniteValues
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode
from adaptive.types import VideoShape
from app.jobs import JobSpec, Json
from app.models.components import ModelUnavailable
from app.worker.decoding import Decoding, OnEvent, OutOfMemory, WaitForMemory
from app.worker.finite import HALF, found_json
from app.worker.float32_vae import Float32Vae
from app.worker.job.failures import JobFailure
from app.worker.roles.loaded_vae import LoadedVae

T = TypeVar("T")


class Float32Decoder:
    """A loaded model whose decodes run in float32 on the same device. `retry` goes into their reports.

    Loads a second copy of the VAE when the first decode is opened.
    """

    def __init__(self, model: LoadedVae, retry: Json) -> None:
        self._model = model
        self._retry = retry
        self._copy: Float32Vae | None = None

    @property
    def device(self) -> torch.device:
        """The device of the decoded frames."""
        return self._model.device

    def video_shape(self, clip: RecordedClip) -> VideoShape:
        """See `LoadedVae.video_shape`."""
        return self._model.video_shape(clip)

    def open_decode(
        self,
        recorded: RecordedDecode,
        spec: JobSpec,
        on_event: OnEvent,
        wait_for_memory: WaitForMemory | None = None,
    ) -> Decoding:
        """Plan the decode in the memory that is free now; see `LoadedVae.open_decode`.

        Raises `DoesNotFit`, and what `LoadedVae.load_vae_in_float32` raises.
        """
        if self._copy is None:
            self._copy = self._model.load_vae_in_float32(on_event)
        return self._model.open_decode_in_float32(
            recorded, self._copy, spec, on_event, self._retry, wait_for_memory
        )

    def open_decode_on_host(self, recorded: RecordedDecode, spec: JobSpec, on_event: OnEvent) -> Decoding:
        """See `LoadedVae.open_decode_on_host`, which decodes in float32 anyway."""
        return self._model.open_decode_on_host(recorded, spec, on_event, self._retry)


Decoder = LoadedVae | Float32Decoder


def decode_or_repeat(decode: Callable[[Decoder], T], model: LoadedVae, on_event: OnEvent) -> T:
    """`decode(model)`; once more in float32 if it gave values that are not finite in half precision.

    Tells so with the event `decode_retry` before the second decode begins. Raises `JobFailure` with the code
    `nonfinite_values` if no second decode helps or none can run.
    """
    try:
        return decode(model)
    except NonFiniteValues as error:
        if error.stage != "decoding":
            raise
        first = error
    first.__traceback__ = None  # else it would keep the failed decode's tensors alive
    on_event("nonfinite", found_json(first))
    if first.dtype not in HALF:
        raise _failure(first)
    retry: Json = {
        "from_dtype": first.dtype,
        "to_dtype": "float32",
        "values": first.values,
        "of": first.of,
    }
    on_event("decode_retry", {**retry, "reason": str(first)})
    try:
        return decode(Float32Decoder(model, retry))
    except NonFiniteValues as error:
        on_event("nonfinite", found_json(error))
        earlier = f"in {first.dtype} it was {first.values:,} of {first.of:,}"
        raise _failure(error, retry, f"this is the second decode, in float32; {earlier}") from error
    except (DoesNotFit, ModelUnavailable, OutOfMemory) as error:
        note = f"this was in {first.dtype}; the decode could not be repeated in float32: {error}"
        raise _failure(first, retry, note) from error


def _failure(error: NonFiniteValues, retry: Json | None = None, note: str = "") -> JobFailure:
    data = {**found_json(error), **({} if retry is None else {"retry": retry})}
    return JobFailure("nonfinite_values", f"{error}; {note}" if note else str(error), data)
