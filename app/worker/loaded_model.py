"""A loaded model: denoises requests to latents and opens the decodes of recorded ones.

Owns the use of one diffusers pipeline. Knows a request as a `JobSpec`; must not know the job table or files.

Longer than 300 lines: every decode, in its dtype and on its device, needs the same loaded parts.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module

from adaptive.decoding.calibrate import Measurement, calibrate
from adaptive.decoding.encoder import AdaptiveEncoder
from adaptive.denoise.preview.latent_layout import LatentLayout
from adaptive.denoise.preview.pixel_map import PixelMap
from adaptive.denoise.self_test import Recording
from adaptive.denoise.watch import DenoiseHandler, watch
from adaptive.device.out_of_memory import is_out_of_memory, release_frames
from adaptive.device.probe import MemoryProbe, open_probe
from adaptive.errors import DecodeOutOfMemory, DoesNotFit, UnsupportedVae
from adaptive.memory.learned_costs import LearnedCosts
from adaptive.pipelines.capture import capture, kept_frames
from adaptive.pipelines.encode_call import AdaptiveEncodeCall
from adaptive.pipelines.in_place import DecodeCall, decoding_in_place
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode
from adaptive.planning.planner import Placement, Policy
from adaptive.planning.weight_placement import PlacementKind, Stage
from adaptive.stream import self_test
from adaptive.types import MeasuredPeak, MemoryReading, VideoShape
from app.config import Settings
from app.fields.keyframes import PICTURES
from app.jobs import JobSpec, Json
from app.models import profiles
from app.models.entries import ModelEntry
from app.models.loading import PlacedJob, PlacedPipeline, load_vae
from app.models.place_weights import DENOISERS, is_grouped
from app.models.requirements import denoise_key, denoise_positions
from app.pipelines.frames import added_latent_frames
from app.worker.decoding import (
    DecodeContext,
    Decoding,
    OnEvent,
    WaitForMemory,
    check_fits,
    load_learned_costs,
    video_shape,
)
from app.worker.device_errors import device_fault, translated_device_errors
from app.worker.finite import check_clip
from app.worker.float32_vae import Float32Vae, load_in_float32
from app.worker.idle_weights import IdleWeights
from app.worker.loras.switch import AppliedLoras
from app.worker.pipeline_call import (
    OnStep,
    UnsuitablePipeline,
    check_call,
    check_last_image,
    run_pipeline,
    sound_of,
)
from app.worker.placement import (
    groupable,
    is_divided,
    is_placed,
    lean_plan,
    leaner_placement,
    moved,
    placement_now,
    replaced,
)
from app.worker.vae_precision import EncodeInVaeDtype

log = logging.getLogger(__name__)


def unrecorded(*_: Any) -> AbstractContextManager[Callable[[], object]]:
    """A `Recording` that records nothing."""
    return nullcontext(lambda: None)


class LoadedModel:
    """A placed pipeline. Its VAE decodes in chunks unless `check_streaming` finds that they are not exact.

    The constructor raises `UnsuitablePipeline` for a pipeline that does not accept a request's arguments.
    """

    def __init__(
        self,
        entry: ModelEntry,
        placed: PlacedPipeline,
        settings: Settings,
        device: torch.device,
        context: DecodeContext,
    ) -> None:
        self.entry = entry
        self.device = device
        check_call(placed.pipe, entry)
        check_last_image(placed.pipe, entry)
        self._pipe = placed.pipe
        self._placed = placed
        self._placed_before: PlacedPipeline | None = None  # before a job that ran out of memory
        self._denoises_on_host = False  # its denoisers have lost their hooks
        self._quantized = placed.quantized
        self._settings = settings
        self._context = context
        self._streams = True
        self.not_resumable: str | None = "it was not tested"  # why the denoise has no checkpoints
        # What the pipeline does with decoded frames in its call, if it needs them there: it decodes in place.
        self.in_place = entry.in_place_because
        self.latent_layout: LatentLayout | None = None  # of its denoise; None: not found out
        policy = Policy(reserve_bytes=settings.reserve_bytes)
        vae = placed.pipe.vae
        self._encode = AdaptiveEncodeCall(vae, AdaptiveEncoder(vae, probe=context.probe, policy=policy))
        self.host_learned_costs: LearnedCosts | None = None  # set once a decode ran on the CPU in its place
        self._loras = AppliedLoras(placed.pipe, settings.lora_folder)
        self._note_idle_weights()

    def _note_idle_weights(self) -> None:
        """Let a decode drop the weights that are idle then, if they are on the device all the time."""
        idle = None
        if self._placed.kind == "resident" and self.device.type != "cpu" and not self._quantized:
            parts = [part for name, part in self._pipe.components.items() if name != "vae"]
            modules = [part for part in parts if isinstance(part, torch.nn.Module)]
            idle = IdleWeights(modules, self.device)
        self._context = replace(self._context, idle=idle)

    @property
    def placement(self) -> Json:
        """Where the weights are, as JSON."""
        return self._placed.as_json()

    @property
    def pipe(self) -> Any:
        """The diffusers pipeline."""
        return self._pipe

    @property
    def exact(self) -> bool:
        """Whether the weights are those published, none quantized."""
        return not self._quantized

    @property
    def pixel_map(self) -> PixelMap | None:
        """What shows latents as pictures; None without one that is good enough."""
        return self._context.pixel_map

    @pixel_map.setter
    def pixel_map(self, fitted: PixelMap) -> None:
        self._context = replace(self._context, pixel_map=fitted)

    def rest(self) -> None:
        """Let parts that are offloaded leave the device."""
        self._placed.return_to_host()

    @property
    def weights(self) -> Json:
        """For the job's report: whether the weights are exact, else which were quantized and how."""
        if self.exact:
            return {"exact": True}
        return {"exact": False, "quantized": list(self._quantized), "weights": "int8"}

    @property
    def vae_dtype(self) -> torch.dtype:
        """The dtype in which the VAE decodes."""
        dtype: torch.dtype = self._pipe.vae.dtype
        return dtype

    @property
    def vae_weight_bytes(self) -> int:
        """Bytes of the VAE's parameters and buffers."""
        vae = self._pipe.vae
        return sum(t.numel() * t.element_size() for t in [*vae.parameters(), *vae.buffers()])

    def check_streaming(self, on_event: OnEvent) -> None:
        """Compare streamed with batched decoding on this VAE; if they differ, decode it in one call only.

        This also loads the device's kernels, which torch loads lazily, before the first decode is planned.
        """
        self._streams = self._streams_exactly(self._pipe.vae, on_event)

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

    def place_for(self, spec: JobSpec, on_event: OnEvent, *, cautious: bool = True) -> None:
        """Move the weights to the fastest placement for the job in the memory that is free now.

        Restores weights that a decode dropped. Raises `DoesNotFit` if no placement fits. If not `cautious`,
        only tensors count: for a job that would otherwise not run at all.
        """
        context = self._context
        if self._placed_before is not None:  # an earlier job has stepped down
            before = self._placed_before
            self._placed, refusal = replaced(before, self._placed, self.device, context.probe)
            self._note_idle_weights()
            if refusal is not None:
                raise refusal
            self._placed_before = None
            self._denoises_on_host &= before.plan is not None and not before.quantized
        job = replace(PlacedJob.of(spec, context.learned_costs), cautious=cautious)
        plan = placement_now(self._placed, self.entry, self._settings, self.device, context.probe, job)
        if plan is None or (is_placed(self._placed, plan) and not self._denoises_on_host):
            self.restore_idle_weights()
            return
        kind_before = self._placed.kind
        self._denoises_on_host = False
        refusal = self.move(plan)
        on_event("placed", {"from": kind_before, **self.placement})
        if refusal is not None:
            raise refusal

    def restore_idle_weights(self) -> None:
        """Bring back the weights that a decode dropped. Raises `DoesNotFit`."""
        idle, probe = self._context.idle, self._context.probe
        if idle is None:
            return
        try:
            idle.restore(max(0, probe.read().free_bytes - self._settings.reserve_bytes))
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release_frames(error)
        idle.drop()
        probe.release()
        needed_bytes, free_bytes = idle.size_bytes, probe.read().free_bytes
        raise DoesNotFit("restoring weights", needed_bytes=needed_bytes, budget_bytes=free_bytes)

    def move(self, plan: Placement) -> DoesNotFit | None:
        """Place the weights by `plan`; returns what was missing if they could not be placed so."""
        self._placed, refusal = moved(self._placed, plan, self.device, self._context.probe)
        self._note_idle_weights()
        return refusal

    def fit_denoise(self, spec: JobSpec, on_event: OnEvent, *, cautious: bool = True) -> Json:
        """Place the weights for the job and let its pipeline plan its denoising; returns the plan's JSON.

        The plan is {} for a pipeline that does not plan. The job's LoRAs are applied in place of those of an
        earlier one. Raises `DoesNotFit` as `place_for` does, or if no option fits, and `LoraNotApplied`.
        """
        plans_itself = hasattr(self._pipe, "fit_denoise")
        switches = self._loras.differ_from(spec.loras)
        if switches:
            self._remove_loras()  # before the placement, which may use their memory
        try:
            self.place_for(spec, on_event, cautious=cautious)
        except DoesNotFit:
            if not plans_itself:
                raise  # such a pipeline has smaller options than the placement counts with
        if switches and spec.loras:
            self._apply_loras(spec)
        if not plans_itself:
            return {}
        reading = self._context.probe.read()
        plan = self._pipe.fit_denoise(
            max(0, reading.free_bytes - self._settings.reserve_bytes - self._denoiser_bytes_on_host()),
            num_frames=spec.num_frames,
            height=spec.height,
            width=spec.width,
            guidance_scale=spec.guidance_scale,
        )
        data: Json = plan.as_json()
        on_event("denoise_plan", data)
        return data

    def _remove_loras(self) -> None:
        """Take the LoRAs of an earlier job away."""
        if not self._loras.applied:
            return
        if self._context.idle is not None:
            self._context.idle.leave_out(self._loras.tensors())
        self._loras.remove()
        self._place_groups_anew()

    def _apply_loras(self, spec: JobSpec) -> None:
        """Apply the job's LoRAs to the placed weights. Raises `LoraNotApplied`."""
        started = time.monotonic()
        with translated_device_errors("loading"):
            self._loras.apply(spec.loras)
        self._place_groups_anew()
        self._note_idle_weights()
        names, seconds = ",".join(each.name for each in spec.loras), time.monotonic() - started
        log.info("loras_applied model=%s loras=%s seconds=%.3f", self.entry.name, names, seconds)

    def _place_groups_anew(self) -> None:
        """Hook layers again that LoRAs have replaced, where layers pass through the device in groups."""
        if self._placed.kind != PlacementKind.GROUP_OFFLOAD or self.device.type == "cpu":
            return
        before = self._placed
        plan = before.plan or replace(lean_plan(before), group_offloaded=groupable(self._pipe))
        refusal = self.move(plan)
        if refusal is not None:
            raise refusal
        self._placed = replace(self._placed, plan=before.plan)

    @property
    def probe(self) -> MemoryProbe:
        """Measures the device's memory."""
        return self._context.probe

    def learn_denoise(self, spec: JobSpec, measured: MeasuredPeak | None, step_seconds: float | None) -> None:
        """Learn what the steps of a denoise took above the weights, and how long one took."""
        costs, profile = self._context.learned_costs.denoise, self._context.profile
        if profile is None:
            return
        guided = spec.guidance_scale > 1
        if step_seconds is not None:
            video = VideoShape(spec.num_frames, spec.height, spec.width)
            added = added_latent_frames(self.entry.pipeline, spec)
            positions = denoise_positions(profile, video, guided=guided, added_frames=added)
            costs.observe_step(denoise_key(self.entry, self._placed.kind), positions, step_seconds)
        live_bytes = self.least_step_bytes(spec)
        # With group offload, layers that pass through the device would count.
        if (
            measured is not None
            and live_bytes > self.probe.noise_bytes
            and self._placed.kind != "group_offload"
        ):
            costs.observe(denoise_key(self.entry), live_bytes, measured)

    def learn_failure(self, *, least_bytes: int) -> None:
        """Learn that a step did not fit in what is free, the weights on the device aside."""
        if least_bytes > self.probe.noise_bytes:
            costs = self._context.learned_costs.denoise
            costs.out_of_memory(denoise_key(self.entry), least_bytes, self.memory().free_bytes)

    def memory(self) -> MemoryReading:
        """The device's memory now."""
        return self._context.probe.read()

    def release(self) -> None:
        """Free cached memory, and bring components back to the host that a failed move left half there."""
        self._context.probe.release()
        if self._placed.kind != "resident":
            for part in self._pipe.components.values():
                if isinstance(part, torch.nn.Module) and is_divided(part) and not is_grouped(part):
                    part.to("cpu")
            self._context.probe.release()

    def least_step_bytes(self, spec: JobSpec) -> int:
        """Bytes of the tensors of one step; 0 if unknown."""
        requirements = profiles.load_requirements(self._settings, self.entry)
        if requirements is None or self._context.profile is None:
            return 0
        video = VideoShape(spec.num_frames, spec.height, spec.width)
        latent = self._context.profile.traits.latent_shape(video)
        requirements = requirements.with_frames(added_latent_frames(self.entry.pipeline, spec))
        return requirements.least_bytes(latent, 0, guided=spec.guidance_scale > 1)[Stage.DENOISE]

    @property
    def missing_weight_bytes(self) -> int:
        """Bytes of weights that must come to the device before the denoiser runs."""
        if self._placed.kind == PlacementKind.GROUP_OFFLOAD:
            return 0
        if self._placed.kind != PlacementKind.MODEL_OFFLOAD:
            return self._denoiser_bytes_on_host()
        # One component at a time is on the device: the one that leaves makes room.
        parts = [self._pipe.components.get(name) for name in DENOISERS]
        sizes: list[int] = [
            sum(each.nbytes for each in part.parameters()) for part in parts if part is not None
        ]
        return max(0, max(sizes, default=0) - (sum(sizes) - self._denoiser_bytes_on_host()))

    def place_leaner(self) -> str | None:
        """Move the weights to the next leaner placement; returns its name, None if there is none.

        The pipeline may be running. The next job's `place_for` places them anew.
        """
        plan = leaner_placement(self._placed, self.device)
        if plan is None:
            return None
        self._placed_before = self._placed_before or self._placed
        self.move(plan)
        return plan.kind.value

    def denoisers_to_host(self) -> None:
        """Let the denoisers compute on the CPU from their next call on, until the next job."""
        self._placed_before = self._placed_before or self._placed
        plan = replace(lean_plan(self._placed), kind=PlacementKind.MODEL_OFFLOAD, group_offloaded=())
        self.move(plan)
        self._denoises_on_host = True
        self._unhook_denoisers()

    def _unhook_denoisers(self) -> None:
        """Keep offload hooks from moving the denoisers to the device."""
        for name in DENOISERS:
            if self._pipe.components.get(name) is not None:
                remove_hook_from_module(self._pipe.components[name])

    @property
    def encode_plan(self) -> Json:
        """How the last request's images were encoded, as JSON; {} if there was nothing to decide."""
        plan = getattr(self._pipe, "encode_plan", None) or self._encode.plan
        return {} if plan is None else {"encode": plan.as_json()}

    def _denoiser_bytes_on_host(self) -> int:
        """Bytes of the denoiser's weights that its offload hooks bring to the device when it runs."""
        parts = [
            part for name, part in self._pipe.components.items() if name in DENOISERS and part is not None
        ]
        weights = [weight for part in parts for weight in part.parameters()]
        return sum(weight.nbytes for weight in weights if weight.device.type != self.device.type)

    def denoise(
        self,
        spec: JobSpec,
        image: bytes,
        *,
        on_step: OnStep,
        last_image: bytes | None = None,
        keyframes: Sequence[bytes] = (),
        handlers: Sequence[DenoiseHandler] = (),
        recording: Recording = unrecorded,
    ) -> RecordedClip:
        """Run the pipeline up to its decode calls; returns these calls and the sound.

        `image`, `last_image` and `keyframes`, in the request's order, are encoded image files; the video ends
        with `last_image`.
        `on_step(done, total)` may raise to stop. `handlers` run around the denoiser's calls and the
        scheduler's steps; see `adaptive.denoise.watch`. The pipeline runs within `recording`, which gets its
        generators, too, and sees calls before the handlers do. Raises `OutOfMemory`, `DeviceFault`,
        `UnsuitablePipeline` for arguments that the pipeline does not accept or if it changes frames after
        decoding them, and `NonFiniteValues` if latents or sound have NaN or infinite values.
        """
        pipe = self._pipe
        with translated_device_errors("denoising"), capture(pipe, self._new_encode()) as calls:
            output = self._output(spec, image, on_step, last_image, keyframes, handlers, recording)
        try:
            kept = kept_frames(calls, output.frames, type(pipe).__name__)
        except UnsupportedVae as error:
            raise UnsuitablePipeline(
                f"{error}. With `decode_in_place = true` in its entry, model {self.entry.name} decodes in "
                "the pipeline's call, and nothing of its jobs is kept"
            ) from error
        clip = RecordedClip(tuple(kept), sound_of(pipe, output))
        with translated_device_errors("denoising"):
            check_clip(clip, "denoising")
        return clip

    def make(
        self,
        spec: JobSpec,
        image: bytes,
        *,
        decode: DecodeCall,
        on_step: OnStep,
        last_image: bytes | None = None,
        keyframes: Sequence[bytes] = (),
        handlers: Sequence[DenoiseHandler] = (),
        recording: Recording = unrecorded,
    ) -> Any:
        """Run the whole pipeline; `decode` decodes each of its calls in place. Returns the pipeline's frames.

        For a pipeline that needs decoded frames inside its call. Arguments and errors are those of `denoise`,
        besides what `decode` raises, `ContentRefused` and `NotChecked`.
        """
        with translated_device_errors("denoising"), decoding_in_place(self._pipe, decode, self._new_encode()):
            return self._output(spec, image, on_step, last_image, keyframes, handlers, recording).frames

    def _new_encode(self) -> EncodeInVaeDtype:
        self._encode.plan = None
        return EncodeInVaeDtype(self._pipe.vae, self._encode)

    def _output(
        self,
        spec: JobSpec,
        image: bytes,
        on_step: OnStep,
        last_image: bytes | None,
        keyframes: Sequence[bytes],
        handlers: Sequence[DenoiseHandler],
        recording: Recording,
    ) -> Any:
        """What the pipeline returns for the request."""
        if self._denoises_on_host:
            self._unhook_denoisers()  # the end of a call before has hooked them again
        images = {"image": image} | ({} if last_image is None else {"last_image": last_image})
        images |= dict(zip(PICTURES, keyframes, strict=False))
        torch.manual_seed(spec.seed)
        generator = torch.Generator(self.device).manual_seed(spec.seed)
        with watch(self._pipe, handlers), recording(self._pipe, self.device, [generator]) as step_done:

            def after_step(done: int, total: int) -> None:
                step_done()
                on_step(done, total)

            try:
                return run_pipeline(self._pipe, self.entry, spec, images, generator, after_step)
            finally:
                self._placed.return_to_host()  # also after an error: offloaded parts must leave the device

    def check_fits(self, clip: RecordedClip, spec: JobSpec) -> None:
        """Raise `ValueError` unless this VAE decodes the clip to the video that the request asks for."""
        check_fits(self._pipe.vae, clip, VideoShape(spec.num_frames, spec.height, spec.width))

    def video_shape(self, clip: RecordedClip) -> VideoShape:
        """The shape of the video that the clip's calls decode to."""
        return video_shape(self._pipe.vae, clip)

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
        vae = self._pipe.vae
        if self.entry.decode_dtype != self.entry.dtype:  # the pipeline may leave the conversion to others
            recorded = recorded.to(recorded.latents.device, vae.dtype)
        return self._decoding(vae, recorded, self._policy(spec), self._context, on_event, wait_for_memory)

    def _decoding(self, *arguments: Any) -> Decoding:
        """A decode. One in place gathers its frames on the device, so its plan leaves room for them."""
        return Decoding(*arguments, keeps_output=self.in_place is not None)

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

    def idle_report(self) -> Json:
        """The bytes that a decode may drop from the device and the seconds to restore them, as JSON."""
        idle = self._context.idle
        if idle is None:
            return {}
        return {"droppable_bytes": idle.droppable_bytes, "reload_seconds": round(idle.reload_seconds, 3)}

    def calibrate(self, limit_seconds: float) -> None:
        """Time small decodes of the VAE for at most `limit_seconds`, unless its speed is known already.

        Where the memory for them is missing now, speed is learned from the first jobs.
        """
        context, vae = self._context, self._pipe.vae
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
        self._placed.return_to_host()
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
