"""A loaded model: makes latents of a request, and opens the decode of recorded ones.

Owns what is done with one diffusers pipeline. Knows the request as a `JobSpec`; neither the job table nor
files.
"""

import logging
from dataclasses import replace

import torch

from adaptive.decoding.calibrate import calibrate
from adaptive.decoding.encoder import AdaptiveEncoder
from adaptive.device.probe import open_probe
from adaptive.memory.learned_costs import LearnedCosts
from adaptive.pipelines.capture import capture, kept_frames
from adaptive.pipelines.encode_call import AdaptiveEncodeCall
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode
from adaptive.planning.planner import Policy
from adaptive.stream import self_test
from adaptive.types import VideoShape
from app.config import Settings
from app.jobs import JobSpec, Json
from app.models.entries import ModelEntry
from app.models.loading import PlacedPipeline, load_vae
from app.models.place_weights import DENOISERS
from app.worker.decoding import (
    DecodeContext,
    Decoding,
    OnEvent,
    load_learned_costs,
    translated_device_errors,
    video_shape,
)
from app.worker.idle_weights import IdleWeights
from app.worker.pipeline_call import OnStep, check_call, run_pipeline, sound_of

log = logging.getLogger(__name__)


class LoadedModel:
    """A placed pipeline. Its VAE decodes exactly in chunks unless `check_streaming` found otherwise.

    `UnsuitablePipeline` for one that does not take what requests give.
    """

    def __init__(
        self,
        entry: ModelEntry,
        placed: PlacedPipeline,
        settings: Settings,
        device: torch.device,
        around: DecodeContext,
    ) -> None:
        self.entry = entry
        self.device = device
        check_call(placed.pipe, entry)
        self._pipe = placed.pipe
        self._vacate = placed.vacate
        self.placement = placed.as_json()
        self._quantized = placed.quantized
        self._settings = settings
        self._around = around
        self._streams = True
        policy = Policy(reserve_bytes=settings.reserve_bytes)
        vae = placed.pipe.vae
        self._encode = AdaptiveEncodeCall(vae, AdaptiveEncoder(vae, probe=around.probe, policy=policy))
        self.host_experience: LearnedCosts | None = None  # once a decode ran on the CPU instead of the device
        parts = [part for name, part in placed.pipe.components.items() if name != "vae"]
        modules = [part for part in parts if isinstance(part, torch.nn.Module)]
        if placed.kind == "resident" and device.type != "cpu" and not placed.quantized:
            self._around = replace(around, idle=IdleWeights(modules, device))

    @property
    def exact(self) -> bool:
        """Whether the weights are those published, none rounded."""
        return not self._quantized

    @property
    def weights(self) -> Json:
        """Whether what it denoises is exact, for the job's report; where not, what was rounded and how."""
        if self.exact:
            return {"exact": True}
        return {"exact": False, "quantized": list(self._quantized), "weights": "int8"}

    @property
    def vae_weight_bytes(self) -> int:
        """Bytes of the VAE's parameters and buffers."""
        vae = self._pipe.vae
        return sum(t.numel() * t.element_size() for t in [*vae.parameters(), *vae.buffers()])

    def check_streaming(self, on_event: OnEvent) -> None:
        """Compare streamed with whole decoding on this very VAE; where they differ, chunks are off for it.

        Also pays for lazily loaded kernels before the first decode is planned.
        """
        try:
            self_test(self._pipe.vae)
        except Exception as error:
            self._streams = False
            log.warning("streaming_self_test_failed model=%s reason=%s", self.entry.name, error)
            on_event("self_test_failed", {"model": self.entry.name, "reason": str(error)})

    def fit_denoise(self, spec: JobSpec, on_event: OnEvent) -> Json:
        """Let a pipeline that can denoise in less memory choose how, by what is free now; the plan, if any.

        Weights that were dropped for a decode come back first. Raises `DoesNotFit` where no way fits.
        """
        if self._around.idle is not None:
            free_bytes = self._around.probe.read().free_bytes
            self._around.idle.restore(max(0, free_bytes - self._settings.reserve_bytes))
        if not hasattr(self._pipe, "fit_denoise"):
            return {}
        reading = self._around.probe.read()
        plan = self._pipe.fit_denoise(
            max(0, reading.free_bytes - self._settings.reserve_bytes - self._denoiser_bytes_to_come()),
            num_frames=spec.num_frames,
            height=spec.height,
            width=spec.width,
            guidance_scale=spec.guidance_scale,
        )
        told: Json = plan.as_json()
        on_event("denoise_plan", told)
        return told

    @property
    def encode_plan(self) -> Json:
        """How the last request's images, or the clip of them, were encoded, where that was to be decided."""
        plan = getattr(self._pipe, "encode_plan", None) or self._encode.plan
        return {} if plan is None else {"encode": plan.as_json()}

    def _denoiser_bytes_to_come(self) -> int:
        """Weights of the denoiser that offloading brings to the device only when it runs."""
        parts = [
            part for name, part in self._pipe.components.items() if name in DENOISERS and part is not None
        ]
        weights = [weight for part in parts for weight in part.parameters()]
        return sum(weight.nbytes for weight in weights if weight.device.type != self.device.type)

    def denoise(
        self, spec: JobSpec, image: bytes, *, on_step: OnStep, last_image: bytes | None = None
    ) -> RecordedClip:
        """Run the pipeline up to its decode calls and return those, with its sound.

        `last_image`: the video ends with it. `on_step(done, total)` may raise to stop. Raises `OutOfMemory`,
        `DeviceFault`, `UnsuitablePipeline` for what the pipeline does not take, and `UnsupportedVae` for one
        that changes frames after decoding them.
        """
        pipe = self._pipe
        images = {"image": image} | ({} if last_image is None else {"last_image": last_image})
        torch.manual_seed(spec.seed)
        with translated_device_errors("denoising"), capture(pipe, self._encode) as calls:
            try:
                output = run_pipeline(pipe, self.entry, spec, images, self.device, on_step)
            finally:
                self._vacate()  # also where a step raised: components that take turns leave the device
        kept = kept_frames(calls, output.frames, type(pipe).__name__)
        return RecordedClip(tuple(kept), sound_of(pipe, output))

    def video_shape(self, clip: RecordedClip) -> VideoShape:
        """The video that the clip's calls decode to."""
        return video_shape(self._pipe.vae, clip)

    def open_decode(self, recorded: RecordedDecode, spec: JobSpec, on_event: OnEvent) -> Decoding:
        """Plan the decode in the memory that is free now. Raises `DoesNotFit`."""
        return Decoding(self._pipe.vae, recorded, self._policy(spec), self._around, on_event)

    def open_decode_on_host(self, recorded: RecordedDecode, spec: JobSpec, on_event: OnEvent) -> Decoding:
        """Plan the decode on the CPU, where the device cannot hold it: a second copy of the VAE, in float32.

        The same arithmetic with less rounding, so no less exact; only a decoder that injects noise draws
        other noise here. Raises `DoesNotFit`.
        """
        host = torch.device("cpu")
        if self.host_experience is None:
            self.host_experience = load_learned_costs(self._settings, host)
        around = DecodeContext(open_probe("cpu"), None, self.host_experience)
        vae = load_vae(self.entry, self._settings).to(torch.float32)
        return Decoding(vae, recorded.to(host, torch.float32), self._policy(spec), around, on_event)

    def idle_report(self) -> Json:
        """What a decode could have dropped from the device, and what bringing it back costs."""
        idle = self._around.idle
        if idle is None:
            return {}
        return {"droppable_bytes": idle.droppable_bytes, "reload_seconds": round(idle.reload_seconds, 3)}

    def calibrate(self, limit_seconds: float) -> None:
        """Time every rung of the VAE's decode, unless earlier decodes on this device told already."""
        around, vae = self._around, self._pipe.vae
        if limit_seconds <= 0 or around.profile is None:
            return
        if around.learned_costs.speeds.model(around.profile) is not None:
            return
        done = calibrate(vae, around.profile, around.probe, around.learned_costs, limit_seconds=limit_seconds)
        self._vacate()
        log.info("calibrated model=%s decodes=%d", self.entry.name, len(done))

    def _policy(self, spec: JobSpec) -> Policy:
        return Policy(
            strategy=spec.decode_strategy.value if self._streams else "batched",
            frames_per_chunk=spec.frames_per_chunk if self._streams else None,
            exact_only=spec.exact_only,
            budget_bytes=spec.memory_budget_bytes,
            reserve_bytes=self._settings.reserve_bytes,
            allow_cpu=self._settings.allow_cpu,
        )
