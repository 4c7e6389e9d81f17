"""How pipelines take a request: what is called otherwise, and what must be said in another way.

Most pipelines take a request's words as they are. One entry of `FORMS` a pipeline class that does not; a new
pipeline is a function and a line, or nothing. Imports no torch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from app.jobs import JobSpec


def _as_it_is(_pipe: Any) -> None:
    """Nothing to prepare."""


def _said(_pipe: Any, _spec: JobSpec) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class CallForm:
    """One pipeline class' way of being called.

    `names` maps a request's word to the argument it is for the pipeline. `prepare` is done once, when the
    pipeline is loaded. Within `told`, the pipeline keeps to what its call has no argument for.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Any], None] = _as_it_is
    told: Callable[[Any, JobSpec], AbstractContextManager[object]] = _said


def call_form(pipe: Any) -> CallForm:
    """The form of this pipeline's class."""
    return FORMS.get(type(pipe).__name__, CallForm())


def _text_model_found(pipe: Any) -> None:
    """The pipeline looks for the last norm one level down, where transformers had it before version 5."""
    encoder = pipe.text_encoder
    if not hasattr(encoder, "text_model"):
        encoder.text_model = SimpleNamespace(final_layer_norm=encoder.final_layer_norm)


@contextmanager
def _size_and_guidance(pipe: Any, spec: JobSpec) -> Iterator[None]:
    """HunyuanVideo 1.5 takes a size near the image's from its own list; guidance is a component."""
    processor, guider = pipe.video_processor, pipe.guider
    processor.calculate_default_height_width = lambda **_: (spec.height, spec.width)
    pipe.guider = guider.new(guidance_scale=spec.guidance_scale)
    try:
        yield
    finally:
        pipe.guider = guider
        del processor.calculate_default_height_width


FORMS: Mapping[str, CallForm] = {
    "HunyuanVideo15ImageToVideoPipeline": CallForm(told=_size_and_guidance),
    "I2VGenXLPipeline": CallForm(names={"fps": "target_fps"}, prepare=_text_model_found),
    "SanaImageToVideoPipeline": CallForm(names={"num_frames": "frames"}),
    "StableVideoDiffusionPipeline": CallForm(names={"guidance_scale": "max_guidance_scale"}),
}
