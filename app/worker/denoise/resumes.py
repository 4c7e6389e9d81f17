"""Whether a loaded model's denoise can be resumed: a self-test when the model is loaded."""

import io
import logging
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from adaptive.denoise.preview.latent_layout import LatentLayout, find_layout
from adaptive.denoise.self_test import STEPS, NotResumable, Recording, check_resumes
from adaptive.denoise.watch import CallNext, DenoiseHandler, denoisers_of, scheduler_name, schedulers_of
from adaptive.device.out_of_memory import is_out_of_memory
from adaptive.errors import DoesNotFit
from adaptive.families import family_of
from adaptive.pipelines.recorded_call import RecordedClip
from adaptive.pipelines.vae_method import recorded_arguments
from app.jobs import JobSpec, Json
from app.loops import one_line
from app.models.entries import ModelEntry
from app.worker.decoding import OnEvent
from app.worker.device_errors import DeviceFault, OutOfMemory
from app.worker.loaded_model import LoadedModel

log = logging.getLogger(__name__)
_SIDE = 64
_LATENT_FRAMES = 4

# What the self-test found, by all that decides it: a model that is loaded again need not be tested again.
_found: dict[str, tuple[str | None, LatentLayout | None]] = {}


def check_denoise_resumes(model: LoadedModel, on_event: OnEvent) -> None:
    """Find out whether the model's denoise can be resumed; if not, it runs without checkpoints.

    Sets `LoadedModel.not_resumable`, and the layout of latents that the test has seen. Where memory is
    missing now, nothing is found out, and the denoise runs without checkpoints until the model is loaded
    again. A pipeline that decodes in place is not tested.
    """
    if model.in_place is not None:  # each of its jobs says so
        model.not_resumable = f"it decodes in place: it {model.in_place}"
        return
    key = _key(model.pipe, model.entry)
    if key not in _found:
        try:
            _found[key] = _why_not(model), model.latent_layout
        except Exception as error:
            if isinstance(error, DeviceFault) or not (
                isinstance(error, OutOfMemory | DoesNotFit) or is_out_of_memory(error)
            ):
                raise
            model.not_resumable = "memory was missing for its self-test"
            log.warning("resume_self_test_skipped model=%s reason=%s", model.entry.name, one_line(error))
            return
    model.not_resumable, model.latent_layout = _found[key]
    if model.not_resumable is not None:
        log.warning("not_resumable model=%s reason=%s", model.entry.name, model.not_resumable)
        on_event("not_resumable", {"model": model.entry.name, "reason": model.not_resumable})


def small_request(entry: ModelEntry) -> JobSpec:
    """The request of the self-test: the smallest that the model's rules allow, with some frames."""
    side = -(-_SIDE // entry.size_multiple) * entry.size_multiple
    width = height = side
    frames = entry.defaults.num_frames
    if entry.temporal_ratio > 1:
        step = entry.frame_step or entry.temporal_ratio
        frames = min(frames, (_LATENT_FRAMES - 1) * step + entry.first_frame_alone)
    if entry.shapes:
        sizes = [tuple(int(number) for number in shape.split("x")) for shape in entry.shapes]
        width, height, frames = min(sizes, key=lambda size: size[0] * size[1] * size[2])
    fields: Json = {
        "model": entry.name,
        "prompt": "a test" if entry.uses_prompt else "",
        "width": width,
        "height": height,
        "num_frames": frames,
        "fps": entry.defaults.fps,
        "num_inference_steps": STEPS,
        "guidance_scale": entry.defaults.guidance_scale,
        "seed": 0,
    }
    return JobSpec.model_validate(fields)


def _why_not(model: LoadedModel) -> str | None:
    spec, image = small_request(model.entry), _picture()
    last_image = image if "last_image" in model.entry.requires else None

    def call(recording: Recording) -> None:
        last = LastResults(model.pipe)
        clip = model.denoise(
            spec,
            image,
            last_image=last_image,
            on_step=lambda *_: None,
            handlers=(last,),
            recording=recording,
        )
        if model.latent_layout is None:
            model.latent_layout = _layout(model, last, clip)

    try:
        check_resumes(call)
    except NotResumable as error:
        return str(error)
    except Exception as error:
        if isinstance(error, OutOfMemory | DeviceFault | DoesNotFit) or is_out_of_memory(error):
            raise
        return f"its self-test failed: {one_line(error)}"
    return None


class LastResults(DenoiseHandler):
    """The last result of each scheduler, by name."""

    def __init__(self, pipe: Any) -> None:
        self.results: dict[str, Tensor] = {}
        self._pipe = pipe

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        result = call_next(*args, **kwargs)
        latents = result[0]  # of a tuple, and of an output of diffusers
        if isinstance(latents, Tensor):
            self.results[scheduler_name(self._pipe, scheduler)] = latents
        return result


def _layout(model: LoadedModel, last: LastResults, clip: RecordedClip) -> LatentLayout | None:
    vae = model.pipe.vae
    try:
        videos = [
            family_of(vae).as_video(call.latents, recorded_arguments(type(vae), call)) for call in clip.calls
        ]
        return find_layout(last.results, torch.cat(videos, dim=2))
    except (RuntimeError, ValueError) as error:  # calls of several shapes
        log.warning("latent_layout_unknown model=%s reason=%s", model.entry.name, one_line(error))
        return None


def _key(pipe: Any, entry: ModelEntry) -> str:
    schedulers = [(type(each).__name__, sorted(each.config.items())) for each in schedulers_of(pipe).values()]
    denoisers = [type(each).__name__ for each in denoisers_of(pipe).values()]
    call = (sorted(entry.call.items()), entry.recipe.schedule)
    return repr((type(pipe).__qualname__, schedulers, denoisers, call, entry.defaults.guidance_scale > 1))


def _picture() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((_SIDE, _SIDE)).convert("RGB").save(file, "png")
    return file.getvalue()
