"""A loaded model: makes latents of a request, and opens the decode of recorded ones.

Owns what is done with one diffusers pipeline. Knows the request as a `JobSpec`; neither the job table nor
files.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageOps

from adaptive.attach import capture
from adaptive.planner import Policy
from adaptive.recording import RecordedDecode
from adaptive.stream import self_test
from app.config import ModelEntry, Settings
from app.decoding import Decoding, OnEvent, Surroundings, faults_named
from app.jobs import JobSpec, Json
from app.loading import PlacedPipeline
from app.media import open_image
from app.placement import DENOISERS

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]

_NEEDED = {"image", "prompt", "num_frames", "callback_on_step_end"}


class UnsuitablePipeline(Exception):
    """The pipeline does something that Framefit cannot carry out, named in the message."""


class LoadedModel:
    """A placed pipeline. Its VAE decodes exactly in chunks unless `check_streaming` found otherwise."""

    def __init__(
        self,
        entry: ModelEntry,
        placed: PlacedPipeline,
        settings: Settings,
        device: torch.device,
        around: Surroundings,
    ) -> None:
        self.entry = entry
        self.device = device
        self._pipe = placed.pipe
        self._vacate = placed.vacate
        self._settings = settings
        self._around = around
        self._streams = True

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

        Raises `DoesNotFit` where no way fits.
        """
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
        """How the last request's images were encoded, where that was to be decided."""
        plan = getattr(self._pipe, "encode_plan", None)
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
    ) -> RecordedDecode:
        """Run the pipeline up to its decode call and return that call.

        `last_image`: the video ends with it. `on_step(done, total)` may raise to stop. Raises `OutOfMemory`,
        `DeviceFault`, and `UnsuitablePipeline` for a pipeline that decodes in several calls.
        """
        pipe = self._pipe
        arguments = {
            **_call_arguments(pipe, spec, _picture(image, spec), self.device),
            **_optional_arguments(pipe, spec, last_image),
            **self.entry.call,
        }

        def after_step(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            # A scheduler may take more steps than it was asked for.
            on_step(
                index + 1, max(index + 1, getattr(pipe, "num_timesteps", None) or spec.num_inference_steps)
            )
            return tensors

        torch.manual_seed(spec.seed)
        with faults_named("denoising"), capture(pipe) as calls:
            try:
                pipe(**arguments, callback_on_step_end=after_step)
            finally:
                self._vacate()  # also where a step raised: components that take turns leave the device
        if len(calls) != 1:
            raise UnsuitablePipeline(f"{type(pipe).__name__} decodes in {len(calls)} calls, one is supported")
        return calls[0]

    def open_decode(self, recorded: RecordedDecode, spec: JobSpec, on_event: OnEvent) -> Decoding:
        """Plan the decode in the memory that is free now. Raises `DoesNotFit`."""
        return Decoding(self._pipe.vae, recorded, self._policy(spec), self._around, on_event)

    def _policy(self, spec: JobSpec) -> Policy:
        return Policy(
            strategy=spec.decode_strategy.value if self._streams else "batched",
            frames_per_chunk=spec.frames_per_chunk if self._streams else None,
            exact_only=spec.exact_only,
            budget_bytes=spec.memory_budget_bytes,
            reserve_bytes=self._settings.reserve_bytes,
            allow_cpu=self._settings.allow_cpu,
        )


def _picture(image: bytes, spec: JobSpec) -> Image.Image:
    """The request's image, cut to the video's aspect ratio and size."""
    return ImageOps.fit(open_image(image), (spec.width, spec.height), Image.Resampling.LANCZOS)


def _optional_arguments(pipe: Any, spec: JobSpec, last_image: bytes | None) -> dict[str, Any]:
    """What the request gives beside an image and a prompt; nothing of it may be left out."""
    last = None if last_image is None else _picture(last_image, spec)
    given = {"last_image": last, "loop": spec.loop or None, "fs": spec.fs}
    arguments = {name: value for name, value in given.items() if value is not None}
    missing = arguments.keys() - inspect.signature(pipe.__call__).parameters.keys()
    if missing:
        raise UnsuitablePipeline(f"{type(pipe).__name__} takes no {', '.join(sorted(missing))}")
    return arguments


def _call_arguments(pipe: Any, spec: JobSpec, picture: Image.Image, device: torch.device) -> dict[str, Any]:
    """The request in the pipeline's own words; optional parts that it does not take are left out."""
    takes = inspect.signature(pipe.__call__).parameters
    missing = _NEEDED - set(takes)
    if missing:
        raise UnsuitablePipeline(f"{type(pipe).__name__} takes no {', '.join(sorted(missing))}")
    wanted = {
        "image": picture,
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt or None,
        "width": spec.width,
        "height": spec.height,
        "num_frames": spec.num_frames,
        "num_inference_steps": spec.num_inference_steps,
        "guidance_scale": spec.guidance_scale,
        "generator": torch.Generator(device).manual_seed(spec.seed),
        "output_type": "pt",
        "frame_rate": spec.fps,
        "fps": spec.fps,
        "decode_chunk_size": spec.num_frames,  # decoding in chunks is not the pipeline's business
    }
    return {name: value for name, value in wanted.items() if name in takes and value is not None}
