"""Builds a `JobSpec` from the fields of a request and checks it against its model's rules.

Knows nothing of encodings or headers.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from app.api.problems import Problem
from app.api.requests.frames import keyframes_from_text, not_taken, with_frames_checked
from app.api.requests.shapes import largest_size, shape_for
from app.jobs import JobSpec, sides_of
from app.media.fit import Size
from app.models.entries import ModelEntry
from app.pipelines.photo_pan import rules as photo_pan

# Fields for which an empty value, as an HTML form sends it, means that the field is absent.
_BLANK_MEANS_ABSENT = frozenset(
    {
        "frames_per_chunk",
        "memory_budget_bytes",
        "webhook_url",
        "seed",
        "model",
        "priority",
        "fps",
        "fs",
        "loop",
        "loras",
        "keyframes",
        "continue_from",
    }
    | {
        "width",
        "height",
        "num_frames",
        "num_inference_steps",
        "guidance_scale",
        "decode_strategy",
        "embed_metadata",
        "exact_only",
        "fit",
        "gravity",
        "image_size",
        "last_image_size",
    }
)


def job_spec(
    fields: Mapping[str, Any],
    models: Mapping[str, ModelEntry],
    *,
    has_last_image: bool = False,
    measure: Callable[[], Size | None] = lambda: None,
) -> JobSpec:
    """Return the specification in a request's fields, completed with the model's defaults.

    `has_last_image`: the request has a last image. `measure` returns the image's upright size, or None if
    there is none; it is called only if the fields leave the shape to it. Raises `Problem`, pydantic's
    `ValidationError`, and what `measure` raises.
    """
    given = {
        name: value
        for name, value in fields.items()
        if value is not None and not (value == "" and name in _BLANK_MEANS_ABSENT)
    }
    if asks_for_random_seed(fields):
        given["seed"] = secrets.randbelow(2**31)
    if isinstance(given.get("loras"), str):
        given["loras"] = _from_text(given["loras"])
    if isinstance(given.get("keyframes"), str):
        given["keyframes"] = keyframes_from_text(given["keyframes"])
    return _spec_for(entry_of(given, models), models, given, has_last_image, measure)


def _from_text(loras: str) -> object:
    """Return the value of a form's field, which is JSON. Raises `Problem`."""
    try:
        value: object = json.loads(loras)
    except (ValueError, RecursionError) as error:
        message = f'loras must be JSON such as [{{"name": "my-style", "scale": 0.8}}]: {error}'
        raise Problem(422, "invalid_loras", message, data={"field": "loras"}) from None
    return value


def asks_for_random_seed(fields: Mapping[str, Any]) -> bool:
    """Return whether a request leaves its seed to the service: it has none, or -1."""
    seed = fields.get("seed")
    return seed in (None, -1) or (isinstance(seed, str) and seed.strip() in ("", "-1"))


def _spec_for(
    entry: ModelEntry,
    models: Mapping[str, ModelEntry],
    given: Mapping[str, Any],
    has_last_image: bool,
    measure: Callable[[], Size | None],
) -> JobSpec:
    defaults = {**entry.defaults.model_dump(), "loras": entry.loras_json}
    spec = JobSpec.model_validate({**defaults, **given, "model": entry.name})
    _check_fixed(spec, entry)
    spec = _following_image(spec, entry, given, measure)
    check_against_model(spec, entry)
    _check_inputs(spec, entry, models, has_last_image)
    return with_frames_checked(spec, entry, has_last_image=has_last_image)


def _check_fixed(spec: JobSpec, entry: ModelEntry) -> None:
    """Raise `Problem` for a field that the model's recipe does not leave to a job."""
    given = spec.model_dump(mode="json")
    for name, value in entry.fixed.items():
        same = given[name] == value
        if name == "loras":
            same = [each.asked for each in spec.loras] == [each.asked for each in entry.recipe.loras]
        if not same:
            message = f"{name} is fixed for model {entry.name}: leave it out, or send {json.dumps(value)}"
            raise Problem(422, "fixed_by_model", message, data={"field": name, "value": value})


def _following_image(
    spec: JobSpec, entry: ModelEntry, given: Mapping[str, Any], measure: Callable[[], Size | None]
) -> JobSpec:
    """Return the specification with the shape that the image gives it, if the request does not."""
    if {"width", "height"} <= given.keys():
        return spec
    image = measure() or (spec.image_size and sides_of(spec.image_size))
    if not image:
        return spec
    shape = shape_for(
        entry,
        image,
        width=spec.width if "width" in given else None,
        height=spec.height if "height" in given else None,
        num_frames=spec.num_frames if "num_frames" in given else None,
        cropped=spec.fit == "cover",
    )
    return JobSpec.model_validate({**spec.model_dump(), **shape})


def entry_of(fields: Mapping[str, Any], models: Mapping[str, ModelEntry]) -> ModelEntry:
    """Return the model that a request names, or the default model. Raises problem `unknown_model`."""
    name = fields.get("model") or next(iter(models))
    entry = models.get(name) if isinstance(name, str) else None
    if entry is None:
        message = f"there is no model {str(name)[:100]!r}; available models: {', '.join(models)}"
        raise Problem(422, "unknown_model", message)
    return entry


def check_against_model(spec: JobSpec, entry: ModelEntry) -> None:
    """Raise `Problem` if the model cannot run the job; it names the rule and the nearest allowed value."""
    if entry.uses_prompt and not spec.prompt:
        raise Problem(422, "empty_prompt", f"prompt: model {entry.name} needs a prompt")
    if not entry.allows_shape(spec.width, spec.height, spec.num_frames):
        given, allowed = f"{spec.width}x{spec.height}x{spec.num_frames}", list(entry.shapes)
        message = (
            f"width x height x num_frames must be {' or '.join(allowed)} for model {entry.name}, not {given}"
        )
        raise Problem(422, "shape_not_taken", message, data={"field": "width", "shapes": allowed})
    for name in ("width", "height"):
        size = getattr(spec, name)
        if size % entry.size_multiple:
            nearest = max(entry.size_multiple, round(size / entry.size_multiple) * entry.size_multiple)
            raise Problem(
                422,
                "size_not_a_multiple",
                f"{name} must be a multiple of {entry.size_multiple} for model {entry.name}, not {size}; "
                f"the nearest is {nearest}",
                data={"field": name, "multiple": entry.size_multiple, "nearest": nearest},
            )
    if not entry.allows_frames(spec.num_frames):
        step, first = entry.frames_step, int(entry.first_frame_alone)
        nearest = max(1, round((spec.num_frames - first) / step)) * step + first
        raise Problem(
            422,
            "bad_frame_count",
            f"num_frames must be {entry.frame_rule} for model {entry.name}, not {spec.num_frames}; "
            f"the nearest is {nearest}",
            data={"field": "num_frames", "rule": entry.frame_rule, "nearest": nearest},
        )
    _check_limits(spec, entry)
    if entry.source == photo_pan.SOURCE:
        reason = photo_pan.refusal(prompt=spec.prompt, width=spec.width, height=spec.height)
        if reason is not None:
            raise Problem(422, "beyond_model", reason)


def _check_inputs(
    spec: JobSpec, entry: ModelEntry, models: Mapping[str, ModelEntry], has_last_image: bool
) -> None:
    """Raise `Problem` for inputs that the model does not support or that contradict each other."""
    used = {
        "last_image": has_last_image,
        "keyframes": bool(spec.keyframes),
        "loop": spec.loop,
        "fs": spec.fs is not None,
    }
    for name in (name for name, is_used in used.items() if is_used and name not in entry.inputs):
        raise not_taken(name, entry, models)
    if spec.loop and has_last_image:
        message = "a loop ends with its first image: give either loop or last_image"
        raise Problem(422, "contradicting_inputs", message, data={"field": "loop"})
    if (spec.loop or has_last_image) and spec.num_frames < 2:
        message = f"num_frames must be at least 2 with loop or last_image, not {spec.num_frames}"
        raise Problem(422, "bad_frame_count", message, data={"field": "num_frames", "nearest": 2})


def _check_limits(spec: JobSpec, entry: ModelEntry) -> None:
    limits = entry.limits
    for what, value, limit in (
        ("width x height", spec.width * spec.height, limits.max_pixels),
        ("num_frames", spec.num_frames, limits.max_frames),
        ("num_inference_steps", spec.num_inference_steps, limits.max_steps),
    ):
        if value > limit:
            message = f"{what} is {value:,}; model {entry.name} allows at most {limit:,}"
            data: dict[str, Any] = {"field": what, "limit": limit}
            if what == "width x height" and (largest := largest_size(entry, (spec.width, spec.height))):
                data |= {"width": largest[0], "height": largest[1]}
                message += f", for example {largest[0]}x{largest[1]}"
            raise Problem(422, "over_model_limit", message, data=data)
