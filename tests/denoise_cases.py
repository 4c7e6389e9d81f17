"""Every pipeline class that is served, tiny, with its call: interrupted after a step, and resumed.

Also the schedulers of published models whose steps need more than the latents: UniPC's history, noise that is
drawn in each step.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import tiny_pipelines
import torch
from PIL import Image

from adaptive.denoise.encoders import EncoderRecord
from adaptive.denoise.record import DenoiseRecord
from adaptive.denoise.resumable import resumable
from adaptive.pipelines.capture import capture
from adaptive.pipelines.recorded_call import RecordedDecode
from app.pipelines.calls import call_form

SEED = 5
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """The name of a pipeline's class, how it is built, and what it is asked."""

    pipeline: str
    build: Callable[[], Any]
    arguments: dict[str, Any]


@dataclass
class Denoised:
    """One run: its decode calls, sound, the record after the last step that was done, what was computed."""

    calls: list[RecordedDecode] = field(default_factory=list)
    audio: torch.Tensor | None = None
    encoded: EncoderRecord | None = None
    record: DenoiseRecord | None = None
    steps: int = 0
    denoiser_calls: int = 0
    encoder_calls: int = 0


class Interrupted(Exception):
    """The run ends here, as if it was killed."""


def _with_scheduler(pipeline: str, scheduler: str, **options: Any) -> Any:
    import diffusers

    pipe = tiny_pipelines.build(pipeline)
    pipe.register_modules(scheduler=getattr(diffusers, scheduler)(**options))
    return pipe


def _wan22() -> Any:
    """Two experts that take turns, and UniPC, as published."""
    import diffusers

    pipe = tiny_pipelines.build("WanImageToVideoPipeline")
    other = tiny_pipelines.build("WanImageToVideoPipeline").transformer
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    components = {**pipe.components, "transformer_2": other}
    options: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    components["scheduler"] = diffusers.UniPCMultistepScheduler(**options, flow_shift=3.0)
    made = diffusers.WanImageToVideoPipeline(**components, boundary_ratio=0.85)
    made.set_progress_bar_config(disable=True)
    return made


def _dynamicrafter() -> Any:
    from app.pipelines.dynamicrafter.tiny import build_tiny_pipeline

    pipe = build_tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _asked(side: int, frames: int, guidance: str = "guidance_scale", **more: Any) -> dict[str, Any]:
    return {"width": side, "height": side, "num_frames": frames, guidance: 2.0, "prompt": "a bear", **more}


_UNIPC = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
_svd = _asked(64, 4, "max_guidance_scale", fps=8)
del _svd["prompt"]
_photo_pan = _asked(128, 9)
del _photo_pan["guidance_scale"]

_LTX2 = "LTX2ImageToVideoPipeline"
_COGVIDEOX = "CogVideoXImageToVideoPipeline"
_WAN = "WanImageToVideoPipeline"


def _tiny(name: str, arguments: dict[str, Any], scheduler: str | None = None, **options: Any) -> Case:
    if scheduler is not None:
        return Case(name, partial(_with_scheduler, name, scheduler, **options), arguments)
    return Case(name, partial(tiny_pipelines.build, name), arguments)


def _dynamicrafter_case(**more: Any) -> Case:
    return Case("DynamiCrafterPipeline", _dynamicrafter, _asked(64, 16, eta=1.0, **more))


CASES: dict[str, Case] = {
    "cogvideox": _tiny(_COGVIDEOX, _asked(32, 9, use_dynamic_cfg=True)),
    "cogvideox-dpm": _tiny(_COGVIDEOX, _asked(32, 9), "CogVideoXDPMScheduler"),
    "dynamicrafter": _dynamicrafter_case(),
    "dynamicrafter-two-pass": _dynamicrafter_case(guidance_passes=2),
    "dynamicrafter-interpolation": _dynamicrafter_case(loop=True),
    "hunyuanvideo": _tiny(
        "HunyuanVideoImageToVideoPipeline", _asked(32, 13, negative_prompt="x", true_cfg_scale=2.0)
    ),
    "hunyuanvideo15": _tiny("HunyuanVideo15ImageToVideoPipeline", {"num_frames": 9, "prompt": "a bear"}),
    "i2vgen-xl": _tiny("I2VGenXLPipeline", _asked(64, 4, target_fps=8)),
    "ltx": _tiny("LTXImageToVideoPipeline", _asked(64, 17, frame_rate=8)),
    "ltx-condition": _tiny("LTXConditionPipeline", _asked(64, 17, frame_rate=8)),
    "ltx-2": _tiny(_LTX2, _asked(64, 17, frame_rate=8, stg_scale=0.0, audio_stg_scale=0.0)),
    "ltx-2-all-guidance": _tiny(_LTX2, _asked(64, 17, frame_rate=8)),
    "photo-pan": _tiny("PhotoPanPipeline", _photo_pan),
    "svd": _tiny("StableVideoDiffusionPipeline", _svd),
    "wan21": _tiny(_WAN, _asked(32, 9)),
    "wan21-unipc": _tiny(_WAN, _asked(32, 9), "UniPCMultistepScheduler", **_UNIPC),
    "wan22": Case(_WAN, _wan22, _asked(32, 9)),
}


def built(name: str) -> Any:
    """A fresh pipeline object of the case, as in a new process."""
    pipe = CASES[name].build()
    call_form(pipe).prepare(pipe)
    return pipe


def denoised(
    name: str,
    steps: int,
    *,
    record_after: int | None = None,
    resume: Denoised | None = None,
) -> Denoised:
    """Run a fresh pipeline, to step `record_after` if that is given, from where `resume` ended."""
    pipe, done = built(name), Denoised()
    generator = torch.Generator().manual_seed(SEED)
    # Not what an earlier run left behind.
    torch.manual_seed(SEED if resume is None else SEED + 100)
    torch.rand(7)
    given = None
    if resume is not None:
        assert resume.encoded is not None
        assert resume.record is not None
        given = resume.encoded, resume.record

    def after_step() -> None:
        done.steps = run.loop.step_done()
        if done.steps == record_after:
            done.record, done.encoded = run.loop.capture(), run.encoders.record()
            raise Interrupted

    try:
        with capture(pipe) as calls, resumable(pipe, CPU, [generator], given) as run:
            try:
                output = called(pipe, name, generator, steps, after_step)
            finally:
                done.denoiser_calls = run.loop.computed
                done.encoder_calls = run.encoders.calls_computed
        done.calls, done.audio = calls, getattr(output, "audio", None)
    except Interrupted:
        pass
    return done


def called(
    pipe: Any, name: str, generator: torch.Generator, steps: int, after_step: Callable[[], object]
) -> Any:
    """The pipeline's output for the case; `after_step` is called after each step."""
    arguments = dict(CASES[name].arguments)
    image = Image.open(io.BytesIO(picture())).resize(
        (arguments.get("width", 64), arguments.get("height", 64))
    )
    arguments |= {"image": image, "generator": generator, "num_inference_steps": steps, "output_type": "pt"}

    def callback(*_: Any) -> dict[str, Any]:
        after_step()
        return {}

    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        return pipe(**arguments, callback_on_step_end=callback)
    pipe.progress_bar = lambda *_, **__: nullcontext(SimpleNamespace(update=after_step))
    return pipe(**arguments)


def picture() -> bytes:
    """A picture of noise, the same each time."""
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def same_bits(one: Denoised, other: Denoised) -> bool:
    """Whether both runs ask for the same decodes (latents, other arguments) and have the same sound."""
    if len(one.calls) != len(other.calls) or (one.audio is None) != (other.audio is None):
        return False
    sound = one.audio is None or other.audio is None or torch.equal(one.audio, other.audio)
    return sound and all(_same_call(a, b) for a, b in zip(one.calls, other.calls, strict=True))


def _same_call(one: RecordedDecode, other: RecordedDecode) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        return (
            bool(a == b) if not isinstance(a, torch.Generator) else torch.equal(a.get_state(), b.get_state())
        )

    latents = same(one.latents, other.latents)
    arguments = all(same(value, other.kwargs[key]) for key, value in one.kwargs.items())
    return latents and arguments
