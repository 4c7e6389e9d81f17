"""A loaded model: denoises requests to latents; `app.worker.roles.loaded_vae` decodes them.

Owns the use of one diffusers pipeline. Knows a request as a `JobSpec`; must not know the job table or files.

Longer than 300 lines: what moves weights, denoises and learns needs the same loaded parts.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module

from adaptive.decoding.encoder import AdaptiveEncoder
from adaptive.denoise.preview.latent_layout import LatentLayout
from adaptive.denoise.self_test import Recording
from adaptive.denoise.watch import DenoiseHandler, watch
from adaptive.device.out_of_memory import is_out_of_memory, release_frames
from adaptive.errors import DoesNotFit, UnsupportedVae
from adaptive.pipelines.capture import capture, kept_frames
from adaptive.pipelines.encode_call import AdaptiveEncodeCall
from adaptive.pipelines.in_place import DecodeCall, decoding_in_place
from adaptive.pipelines.recorded_call import RecordedClip, Sound
from adaptive.planning.planner import Placement, Policy
from adaptive.planning.weight_placement import PlacementKind, Stage
from adaptive.types import MeasuredPeak, VideoShape
from app.config import Settings
from app.fields.keyframes import PICTURES
from app.jobs import JobSpec, Json
from app.models import profiles
from app.models.entries import ModelEntry
from app.models.loading import PlacedJob, PlacedPipeline
from app.models.place_weights import DENOISERS, is_grouped
from app.models.requirements import denoise_key, denoise_positions
from app.pipelines.frames import added_latent_frames
from app.worker.decoding import (
    DecodeContext,
    OnEvent,
)
from app.worker.device_errors import translated_device_errors
from app.worker.finite import check_clip
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
from app.worker.roles.loaded_vae import LoadedVae
from app.worker.vae_precision import EncodeInVaeDtype

log = logging.getLogger(__name__)


def unrecorded(*_: Any) -> AbstractContextManager[Callable[[], object]]:
    """A `Recording` that records nothing."""
    return nullcontext(lambda: None)


class LoadedModel(LoadedVae):
    """A placed pipeline, and the decodes of its VAE.

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
        super().__init__(entry, placed.pipe.vae, settings, device, context)
        check_call(placed.pipe, entry)
        check_last_image(placed.pipe, entry)
        self._pipe = placed.pipe
        self._placed = placed
        self._placed_before: PlacedPipeline | None = None  # before a job that ran out of memory
        self._denoises_on_host = False  # its denoisers have lost their hooks
        self._quantized = placed.quantized
        self.not_resumable: str | None = "it was not tested"  # why the denoise has no checkpoints
        # What the pipeline does with decoded frames in its call, if it needs them there: it decodes in place.
        self.in_place = entry.in_place_because
        self.latent_layout: LatentLayout | None = None  # of its denoise; None: not found out
        policy = Policy(reserve_bytes=settings.reserve_bytes)
        vae = placed.pipe.vae
        self._encode = AdaptiveEncodeCall(vae, AdaptiveEncoder(vae, probe=context.probe, policy=policy))
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

    def rest(self) -> None:
        """Let parts that are offloaded leave the device."""
        self._placed.return_to_host()

    @property
    def weights(self) -> Json:
        """For the job's report: whether the weights are exact, else which were quantized and how."""
        if self.exact:
            return {"exact": True}
        return {"exact": False, "quantized": list(self._quantized), "weights": "int8"}

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
    ) -> tuple[Any, Sound | None]:
        """Run the whole pipeline; `decode` decodes each of its calls in place. Returns its frames and sound.

        For a pipeline that needs decoded frames inside its call. Arguments and errors are those of `denoise`,
        besides what `decode` raises, `ContentRefused` and `NotChecked`.
        """
        with translated_device_errors("denoising"), decoding_in_place(self._pipe, decode, self._new_encode()):
            output = self._output(spec, image, on_step, last_image, keyframes, handlers, recording)
            sound = sound_of(self._pipe, output)
            check_clip(RecordedClip((), sound), "denoising")
            return output.frames, sound

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

    def idle_report(self) -> Json:
        """The bytes that a decode may drop from the device and the seconds to restore them, as JSON."""
        idle = self._context.idle
        if idle is None:
            return {}
        return {"droppable_bytes": idle.droppable_bytes, "reload_seconds": round(idle.reload_seconds, 3)}
