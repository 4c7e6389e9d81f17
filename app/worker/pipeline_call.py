"""A request in a pipeline's own words: its arguments, its steps told as they happen, what it gives back.

Owns the call to one diffusers pipeline. How a class of pipelines differs from the usual is in
`app.pipelines.calls`. Knows neither where weights are, nor what becomes of the result.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image, ImageOps

from adaptive.pipelines.recorded_call import Sound
from app.jobs import JobSpec, Json
from app.media.images import open_image
from app.models.entries import ModelEntry
from app.pipelines.calls import call_form

OnStep = Callable[[int, int], None]


class UnsuitablePipeline(Exception):
    """The pipeline does something that Framefit cannot carry out, named in the message."""


def check_call(pipe: Any, entry: ModelEntry) -> None:
    """Raises `UnsuitablePipeline` where the pipeline does not take what a request for the model gives."""
    names, takes = call_form(pipe).names, _parameters(pipe)
    needed = {"image", "num_frames"} | ({"prompt"} if entry.uses_prompt else set())
    missing = sorted(name for name in needed if names.get(name, name) not in takes)
    if missing:
        raise UnsuitablePipeline(f"{type(pipe).__name__} takes no {', '.join(missing)}")
    if not entry.uses_prompt and "prompt" in takes:
        raise UnsuitablePipeline(f"{type(pipe).__name__} takes a prompt; the model's entry says otherwise")


def run_pipeline(
    pipe: Any,
    entry: ModelEntry,
    spec: JobSpec,
    images: dict[str, bytes],
    device: torch.device,
    on_step: OnStep,
) -> Any:
    """The pipeline's output for the request; `images` are `image` and, where there is one, `last_image`.

    `on_step(done, total)` may raise to stop.
    """
    pictures = {name: _picture(data, spec) for name, data in images.items()}
    arguments = {**_arguments(pipe, spec, pictures, device), **entry.call}
    with call_form(pipe).told(pipe, spec), _steps_told(pipe, spec, on_step) as callback:
        return pipe(**arguments, **callback)


def sound_of(pipe: Any, output: Any) -> Sound | None:
    """What is heard beside the output's first video, where the pipeline makes sound."""
    waveform = getattr(output, "audio", None)
    if waveform is None:
        return None
    return Sound(waveform[0].detach().float().cpu(), int(pipe.vocoder.config.output_sampling_rate))


def _arguments(
    pipe: Any, spec: JobSpec, pictures: dict[str, Image.Image], device: torch.device
) -> dict[str, Any]:
    names, takes = call_form(pipe).names, _parameters(pipe)
    # What the request gives beside an image and a prompt: nothing of it may be left out.
    given = {"last_image": pictures.get("last_image"), "loop": spec.loop or None, "fs": spec.fs}
    demanded = {name: value for name, value in given.items() if value is not None}
    missing = demanded.keys() - takes
    if missing:
        raise UnsuitablePipeline(f"{type(pipe).__name__} takes no {', '.join(sorted(missing))}")
    offered: Json = {
        "image": pictures["image"],
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
    wanted = {names.get(name, name): value for name, value in offered.items() if value is not None}
    return {name: value for name, value in wanted.items() if name in takes} | demanded


@contextmanager
def _steps_told(pipe: Any, spec: JobSpec, on_step: OnStep) -> Iterator[dict[str, Any]]:
    """Arguments that make the pipeline tell its steps; one that takes no callback is asked by its progress
    bar.
    """

    def tell(done: int) -> None:
        # A scheduler may take more steps than it was asked for.
        on_step(done, max(done, getattr(pipe, "num_timesteps", None) or spec.num_inference_steps))

    def after_step(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        tell(index + 1)
        return tensors

    @contextmanager
    def bar(*_: Any, **__: Any) -> Iterator[SimpleNamespace]:
        steps = iter(range(1, 2**31))
        yield SimpleNamespace(update=lambda *_: tell(next(steps)))

    if "callback_on_step_end" in _parameters(pipe):
        yield {"callback_on_step_end": after_step}
        return
    pipe.progress_bar = bar
    try:
        yield {}
    finally:
        del pipe.progress_bar


def _parameters(pipe: Any) -> frozenset[str]:
    return frozenset(inspect.signature(pipe.__call__).parameters)


def _picture(image: bytes, spec: JobSpec) -> Image.Image:
    """The request's image, cut to the video's aspect ratio and size."""
    return ImageOps.fit(open_image(image), (spec.width, spec.height), Image.Resampling.LANCZOS)
