"""How the call of a pipeline class differs from the usual: renamed arguments, preparation, configuration.

Most pipelines accept a request's field names as arguments. `FORMS` has one entry for each class that does
not; a new such class is one line and, if needed, one function. Must not import torch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from app.jobs import JobSpec
from app.pipelines import rounds, safety_checker
from app.pipelines.rounds import CountRounds, one_round


def _no_preparation(_pipe: Any) -> None:
    """The default of `CallForm.prepare`."""


def _no_arguments(_spec: JobSpec, _call: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def _no_configuration(_pipe: Any, _spec: JobSpec) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class CallForm:
    """How one pipeline class is called.

    `names` maps a request's field to the pipeline's argument. `prepare` runs once, when the pipeline is
    loaded. `configured` is entered around each call and sets what the call has no argument for. `arguments`
    are further ones, from the request and the entry's `call`. `output_type` is that of the frames: `pt` or
    `np`. `rounds` counts the denoises and decodes of a pipeline that decodes in place. A pipeline with
    `whole_image` crops the image to the video's aspect ratio itself, with the request's `gravity`.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Any], None] = _no_preparation
    configured: Callable[[Any, JobSpec], AbstractContextManager[object]] = _no_configuration
    arguments: Callable[[JobSpec, Mapping[str, Any]], Mapping[str, Any]] = _no_arguments
    output_type: str = "pt"
    rounds: CountRounds = one_round
    whole_image: bool = False


def call_form(pipe: Any) -> CallForm:
    """The call form of this pipeline's class; the default one for a class that has no entry."""
    return form_of_class(type(pipe).__name__)


def form_of_class(pipe_class: str) -> CallForm:
    """The call form of a pipeline class, by its name."""
    return FORMS.get(pipe_class, CallForm())


def _add_text_model(pipe: Any) -> None:
    """Give the text encoder the attribute `text_model` with its last norm.

    The pipeline reads the norm there, where transformers had it before version 5.
    """
    encoder = pipe.text_encoder
    if not hasattr(encoder, "text_model"):
        encoder.text_model = SimpleNamespace(final_layer_norm=encoder.final_layer_norm)


@contextmanager
def _size_and_guidance_set(pipe: Any, spec: JobSpec) -> Iterator[None]:
    """Make HunyuanVideo 1.5 use the request's size and guidance scale.

    The pipeline chooses a size near the image's from a list, and its guidance is a component.
    """
    processor, guider = pipe.video_processor, pipe.guider
    processor.calculate_default_height_width = lambda **_: (spec.height, spec.width)
    pipe.guider = guider.new(guidance_scale=spec.guidance_scale)
    try:
        yield
    finally:
        pipe.guider = guider
        del processor.calculate_default_height_width


def _steps_of_stages(spec: JobSpec, call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request's steps for each stage of the pyramid, unless the entry gives a list."""
    name = "pyramid_num_inference_steps_list"
    return {} if name in call else {name: [spec.num_inference_steps] * rounds.PYRAMID_STAGES}


_COSMOS = CallForm(configured=safety_checker.checked)

FORMS: Mapping[str, CallForm] = {
    "ChronoEditPipeline": CallForm(rounds=rounds.chronoedit),
    "Cosmos2VideoToWorldPipeline": _COSMOS,
    "Cosmos2_5_PredictBasePipeline": _COSMOS,
    "CosmosVideoToWorldPipeline": _COSMOS,
    "HeliosPipeline": CallForm(rounds=rounds.helios),
    "HeliosPyramidPipeline": CallForm(arguments=_steps_of_stages, rounds=rounds.helios_pyramid),
    "HunyuanVideo15ImageToVideoPipeline": CallForm(configured=_size_and_guidance_set),
    "HunyuanVideoFramepackPipeline": CallForm(rounds=rounds.framepack),
    "I2VGenXLPipeline": CallForm(names={"fps": "target_fps"}, prepare=_add_text_model),
    # Each window draws from a generator of its own, seeded by `seed`. A callback that returned the latents
    # would replace the window's by the whole video's. As `pt` the frames would be raw.
    "LTXI2VLongMultiPromptPipeline": CallForm(
        names={"image": "cond_image"},
        arguments=lambda spec, _call: {"seed": spec.seed, "callback_on_step_end_tensor_inputs": []},
        output_type="np",
        rounds=rounds.ltx_long,
    ),
    "PhotoPanPipeline": CallForm(whole_image=True),
    "SanaImageToVideoPipeline": CallForm(names={"num_frames": "frames"}),
    "StableVideoDiffusionPipeline": CallForm(names={"guidance_scale": "max_guidance_scale"}),
}
