"""A VAE on a device: it plans and opens the decodes of recorded calls.

Owns the use of one VAE. A worker whose role is to decode has no more of a model than this; a loaded model
builds on it. Knows a request as a `JobSpec`; must not know the job table or the pipeline.
"""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from adaptive.decoding.calibrate import Measurement, calibrate
from adaptive.denoise.preview.pixel_map import PixelMap
from adaptive.device.out_of_memory import is_out_of_memory
from adaptive.device.probe import MemoryProbe, open_probe
from adaptive.errors import DecodeOutOfMemory, DoesNotFit
from adaptive.memory.learned_costs import LearnedCosts
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode
from adaptive.planning.planner import Policy
from adaptive.stream import self_test
from adaptive.types import MemoryReading, VideoShape
from app.config import Settings
from app.jobs import JobSpec, Json
from app.models.entries import ModelEntry
from app.models.loading import load_vae
from app.worker.decoding import (
    DecodeContext,
    Decoding,
    OnEvent,
    WaitForMemory,
    check_fits,
    load_learned_costs,
    video_shape,
)
from app.worker.device_errors import device_fault
from app.worker.float32_vae import Float32Vae, load_in_float32

log = logging.getLogger(__name__)


class LoadedVae:
    """A VAE and its decodes. It decodes in chunks unless `check_streaming` finds that they are not exact."""

    def __init__(
        self, entry: ModelEntry, vae: Any, settings: Settings, device: torch.device, context: DecodeContext
    ) -> None:
        self.entry = entry
        self.vae = vae
        self.device = device
        self._settings = settings
        self._context = context
        self._streams = True
        self.host_learned_costs: LearnedCosts | None = None  # set once a decode ran on the CPU in its place

    @property
    def exact(self) -> bool:
        """Whether the weights are those published, none quantized."""
        return True

    @property
    def placement(self) -> Json:
        """Where the weights are, as JSON."""
        return {"kind": "vae_alone", "quantized": [], "exact": True}

    def rest(self) -> None:
        """Let parts that are offloaded leave the device: the VAE stays."""

    def idle_report(self) -> Json:
        """The bytes that a decode may drop from the device, as JSON: a VAE alone has none."""
        return {}

    @property
    def pixel_map(self) -> PixelMap | None:
        """What shows latents as pictures; None without one that is good enough."""
        return self._context.pixel_map

    @pixel_map.setter
    def pixel_map(self, fitted: PixelMap) -> None:
        self._context = replace(self._context, pixel_map=fitted)

    @property
    def vae_dtype(self) -> torch.dtype:
        """The dtype in which the VAE decodes."""
        dtype: torch.dtype = self.vae.dtype
        return dtype

    @property
    def vae_weight_bytes(self) -> int:
        """Bytes of the VAE's parameters and buffers."""
        return sum(t.nbytes for t in [*self.vae.parameters(), *self.vae.buffers()])

    def check_streaming(self, on_event: OnEvent) -> None:
        """Compare streamed with batched decoding on this VAE; if they differ, decode it in one call only.

        This also loads the device's kernels, which torch loads lazily, before the first decode is planned.
        """
        self._streams = self._streams_exactly(self.vae, on_event)

    def _streams_exactly(self, vae: Any, on_event: OnEvent) -> bool:
        try:
            self_test(vae)
        except Exception as error:
            if is_out_of_memory(error) or device_fault(error) is not None:
                raise  # it says nothing about streaming
            log.warning("streaming_self_test_failed model=%s reason=%s", self.entry.name, error)
            on_event("self_test_failed", {"model": self.entry.name, "reason": str(error)})
            return False
        return True

    @property
    def probe(self) -> MemoryProbe:
        """Measures the device's memory."""
        return self._context.probe

    def memory(self) -> MemoryReading:
        """The device's memory now."""
        return self._context.probe.read()

    def check_fits(self, clip: RecordedClip, spec: JobSpec) -> None:
        """Raise `ValueError` unless this VAE decodes the clip to the video that the request asks for."""
        check_fits(self.vae, clip, VideoShape(spec.num_frames, spec.height, spec.width))

    def video_shape(self, clip: RecordedClip) -> VideoShape:
        """The shape of the video that the clip's calls decode to."""
        return video_shape(self.vae, clip)

    def open_decode(
        self,
        recorded: RecordedDecode,
        spec: JobSpec,
        on_event: OnEvent,
        wait_for_memory: WaitForMemory | None = None,
    ) -> Decoding:
        """Plan the decode in the memory that is free now. Raises `DoesNotFit`.

        `wait_for_memory` waits where another program takes it later; see `AdaptiveDecoder`.
        """
        vae = self.vae
        if self.entry.decode_dtype != self.entry.dtype:  # the pipeline may leave the conversion to others
            recorded = recorded.to(recorded.latents.device, vae.dtype)
        return self._decoding(vae, recorded, self._policy(spec), self._context, on_event, wait_for_memory)

    def _decoding(self, *arguments: Any) -> Decoding:
        """A decode. One in place gathers its frames on the device, so its plan leaves room for them."""
        return Decoding(*arguments, keeps_output=self.entry.in_place_because is not None)

    def open_decode_on_host(
        self, recorded: RecordedDecode, spec: JobSpec, on_event: OnEvent, retry: Json | None = None
    ) -> Decoding:
        """Plan the decode on the CPU with a second copy of the VAE in float32.

        For decodes that the device cannot hold. The arithmetic is the same with less rounding, so the result
        is no less exact; a decoder that injects noise draws different noise here. `retry` goes into the
        report. Raises `DoesNotFit`.
        """
        host = torch.device("cpu")
        if self.host_learned_costs is None:
            self.host_learned_costs = load_learned_costs(self._settings, host)
        context = DecodeContext(
            open_probe("cpu"), None, self.host_learned_costs, retry=retry, pixel_map=self.pixel_map
        )
        vae = load_vae(self.entry, self._settings).to(torch.float32)
        return self._decoding(vae, recorded.to(host, torch.float32), self._policy(spec), context, on_event)

    def open_decode_in_float32(
        self,
        recorded: RecordedDecode,
        copy: Float32Vae,
        spec: JobSpec,
        on_event: OnEvent,
        retry: Json,
        wait_for_memory: WaitForMemory | None = None,
    ) -> Decoding:
        """Plan the decode with the copy of `load_vae_in_float32`. Raises `DoesNotFit`."""
        context = replace(self._context, profile=None, retry=retry)
        policy = self._policy(spec, streams=copy.streams)
        recorded = recorded.to(self.device, torch.float32)
        return self._decoding(copy.vae, recorded, policy, context, on_event, wait_for_memory)

    def load_vae_in_float32(self, on_event: OnEvent) -> Float32Vae:
        """A second copy of the VAE on the device, its weights read in float32.

        It has a self-test of its own: values that are not finite fail the one in half precision. Raises as
        `load_in_float32` does.
        """
        return load_in_float32(
            self.entry,
            self._settings,
            self.device,
            self._context,
            needed_bytes=self.vae_weight_bytes * torch.float32.itemsize // self.vae_dtype.itemsize,
            streams_exactly=partial(self._streams_exactly, on_event=on_event),
        )

    def calibrate(self, limit_seconds: float) -> None:
        """Time small decodes of the VAE for at most `limit_seconds`, unless its speed is known already.

        Where the memory for them is missing now, speed is learned from the first jobs.
        """
        context, vae = self._context, self.vae
        if limit_seconds <= 0 or context.profile is None:
            return
        if context.learned_costs.speeds.model(context.profile) is not None:
            return
        done: list[Measurement] = []
        try:
            done = calibrate(
                vae,
                context.profile,
                context.probe,
                context.learned_costs,
                limit_seconds=limit_seconds,
                reserve_bytes=self._settings.reserve_bytes,
            )
        except Exception as error:
            if not isinstance(error, DoesNotFit | DecodeOutOfMemory) and not is_out_of_memory(error):
                raise
            log.warning("calibration_skipped model=%s reason=%s", self.entry.name, error)
        self.rest()
        log.info("model_calibrated model=%s decodes=%d", self.entry.name, len(done))

    def _policy(self, spec: JobSpec, *, streams: bool | None = None) -> Policy:
        streams = self._streams if streams is None else streams
        return Policy(
            strategy=spec.decode_strategy.value if streams else "batched",
            frames_per_chunk=spec.frames_per_chunk if streams else None,
            exact_only=spec.exact_only,
            budget_bytes=spec.memory_budget_bytes,
            reserve_bytes=self._settings.reserve_bytes,
            allow_cpu=self._settings.allow_cpu,
        )
