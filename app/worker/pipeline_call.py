"""Calls one diffusers pipeline for a request: its arguments, its progress callback, its output.

`app.pipelines.calls` knows how the call of a pipeline class differs from the usual. Must not know where
weights are or what the output is used for.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from adaptive.pipelines.recorded_call import Sound
from app.frame_rate import rate_as_number
from app.jobs import JobSpec, Json
from app.media.fit import GRAVITIES, framed
from app.media.images import open_image
from app.models.entries import ModelEntry
from app.pipelines.calls import call_form
from app.pipelines.frames import FORMS, frame_pictures
from app.pipelines.schedules import fixed_schedule

OnStep = Callable[[int, int], None]
# Their denoiser may see the images through CLIP, too: one of them, or always two.
IMAGE_EMBEDDINGS = frozenset({"SkyReelsV2ImageToVideoPipeline", "WanImageToVideoPipeline"})


class UnsuitablePipeline(Exception):
    """The pipeline cannot serve requests for its model; the message names what does not match."""


def check_call(pipe: Any, entry: ModelEntry) -> None:
    """Raise `UnsuitablePipeline` if the pipeline does not accept the arguments of the model's requests."""
    names, accepted = call_form(pipe).names, _parameters(pipe)
    taken = accepted | ({"image", "last_image", "keyframes"} if _takes_conditions(pipe) else set())
    needed = {"image", "num_frames"} | ({"prompt"} if entry.uses_prompt else set())
    needed |= entry.inputs & {"last_image", "keyframes"}
    missing = sorted(name for name in needed if names.get(name, name) not in taken)
    if missing:
        raise UnsuitablePipeline(f"{type(pipe).__name__} takes no {', '.join(missing)}")
    if not entry.uses_prompt and "prompt" in accepted:
        raise UnsuitablePipeline(
            f"{type(pipe).__name__} takes a prompt, but the entry of model {entry.name} has "
            "uses_prompt = false: remove that line"
        )


def run_pipeline(
    pipe: Any,
    entry: ModelEntry,
    spec: JobSpec,
    images: dict[str, bytes],
    generator: torch.Generator,
    on_step: OnStep,
) -> Any:
    """Call the pipeline for the request and return its output.

    `images` holds the encoded files `image` and, if the request has them, `last_image` and `keyframe_0` and
    so on. `generator` draws the noise. `on_step(done, total)` may raise to stop. Raises `UnsuitablePipeline`
    if the pipeline does not accept one of the inputs.
    """
    form = call_form(pipe)
    whole = form.whole_image and spec.fit == "cover"
    pictures = {name: open_image(data) if whole else _picture(data, spec) for name, data in images.items()}
    own = form.arguments(spec, entry.call)
    arguments = {**_arguments(pipe, spec, pictures, generator), **own, **entry.call}
    with (
        form.configured(pipe, spec),
        fixed_schedule(pipe, sigmas=entry.recipe.sigmas, timesteps=entry.recipe.timesteps),
        _steps_reported(pipe, spec, on_step) as callback,
    ):
        return pipe(**arguments, **callback)


def sound_of(pipe: Any, output: Any) -> Sound | None:
    """The sound of the output's first video; None if the pipeline makes none."""
    waveform = getattr(output, "audio", None)
    if waveform is None:
        return None
    return Sound(waveform[0].detach().float().cpu(), int(pipe.vocoder.config.output_sampling_rate))


def _arguments(
    pipe: Any, spec: JobSpec, pictures: dict[str, Image.Image], generator: torch.Generator
) -> dict[str, Any]:
    form, accepted = call_form(pipe), _parameters(pipe)
    names = form.names
    # A pipeline must not ignore these inputs: without one of them the video would be another.
    inputs: Json = {"loop": spec.loop or None, "fs": spec.fs}
    if _takes_conditions(pipe):
        inputs |= FORMS[type(pipe).__name__].arguments(pipe, frame_pictures(spec, pictures))
    else:
        inputs |= {"last_image": pictures.get("last_image"), "keyframes": spec.keyframes or None}
    required = {name: value for name, value in inputs.items() if value is not None}
    missing = required.keys() - accepted
    if missing:
        raise UnsuitablePipeline(f"{type(pipe).__name__} takes no {', '.join(sorted(missing))}")
    optional: Json = {
        "image": None if _takes_conditions(pipe) else pictures["image"],
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt or None,
        "width": spec.width,
        "height": spec.height,
        "num_frames": spec.num_frames,
        "num_inference_steps": spec.num_inference_steps,
        "guidance_scale": spec.guidance_scale,
        "generator": generator,
        "output_type": form.output_type,
        "frame_rate": rate_as_number(spec.fps),
        "fps": round(spec.fps),  # an embedding of whole rates
        "gravity": tuple(map(float, GRAVITIES[spec.gravity])),
        "decode_chunk_size": spec.num_frames,  # the pipeline must not decode in chunks: the decoder does
    }
    named = {names.get(name, name): value for name, value in optional.items() if value is not None}
    return {name: value for name, value in named.items() if name in accepted} | required


def _takes_conditions(pipe: Any) -> bool:
    """Whether the pipeline takes its pictures as a list of conditions."""
    return type(pipe).__name__ in FORMS


def check_last_image(pipe: Any, entry: ModelEntry) -> None:
    """Raise `UnsuitablePipeline` if the entry and the weights differ about a last image."""
    takes, needs = "last_image" in entry.inputs, "last_image" in entry.requires
    if takes and getattr(pipe.config, "expand_timesteps", False):
        raise UnsuitablePipeline(
            f"model {entry.name} ignores a last image: take last_image out of its entry's inputs"
        )
    transformer = getattr(pipe, "transformer", None)
    config = {} if transformer is None else transformer.config
    if config.get("image_dim") is None or type(pipe).__name__ not in IMAGE_EMBEDDINGS:
        return
    if config.get("pos_embed_seq_len") is not None and not needs:
        raise UnsuitablePipeline(
            f"the weights of model {entry.name} are for a first and a last image: set inputs and requires of "
            'its entry to ["last_image"]'
        )
    if config.get("pos_embed_seq_len") is None and takes:
        raise UnsuitablePipeline(
            f"the weights of model {entry.name} are for one image: take last_image out of its entry's inputs"
        )


@contextmanager
def _steps_reported(pipe: Any, spec: JobSpec, on_step: OnStep) -> Iterator[dict[str, Any]]:
    """Yield the arguments that make the pipeline call `on_step` after each step.

    A pipeline that accepts no callback gets another progress bar meanwhile: its updates count as steps.
    """

    def report(done: int) -> None:
        # A scheduler may take more steps than requested.
        on_step(done, max(done, getattr(pipe, "num_timesteps", None) or spec.num_inference_steps))

    def after_step(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        report(index + 1)
        return tensors

    @contextmanager
    def bar(*_: Any, **__: Any) -> Iterator[SimpleNamespace]:
        steps = iter(range(1, 2**31))
        yield SimpleNamespace(update=lambda *_: report(next(steps)))

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
    """The decoded image, scaled and cropped or set between bars to the video's size."""
    return framed(open_image(image), (spec.width, spec.height), spec.fit, spec.gravity)
