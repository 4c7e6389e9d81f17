"""From the fields of a request to a `JobSpec` that its model can run. Rules of models live here, rules of
HTTP do not.
"""

import secrets
from collections.abc import Mapping
from typing import Any

from app.api.problems import Problem
from app.jobs import JobSpec
from app.models.entries import ModelEntry
from app.pipelines import builtin

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
    }
    | {
        "width",
        "height",
        "num_frames",
        "num_inference_steps",
        "guidance_scale",
        "decode_strategy",
        "exact_only",
    }
)


def job_spec(
    fields: Mapping[str, Any], models: Mapping[str, ModelEntry], *, between: bool = False
) -> JobSpec:
    """The specification in a request's fields, with the model's defaults filled in.

    `between`: a last image came with them. Raises `Problem` or pydantic's `ValidationError`, each with a code
    of its own.
    """
    given = {
        name: value
        for name, value in fields.items()
        if value is not None and not (value == "" and name in _BLANK_MEANS_ABSENT)
    }
    given.setdefault("seed", secrets.randbelow(2**31))
    entry = entry_of(given, models)
    try:
        return _spec_for(entry, given, between)
    except Problem as problem:
        stand_in = None if given.get("model") else _stand_in(entry, models)
        if stand_in is None or problem.code != "over_model_limit":
            raise
        return _spec_for(stand_in, given, between)


def _spec_for(entry: ModelEntry, given: Mapping[str, Any], between: bool) -> JobSpec:
    spec = JobSpec.model_validate({**entry.defaults.model_dump(), **given, "model": entry.name})
    check_against_model(spec, entry)
    _check_inputs(spec, entry, between)
    return spec


def _stand_in(entry: ModelEntry, models: Mapping[str, ModelEntry]) -> ModelEntry | None:
    """The other built-in model, where a request named none and is too large for the first.

    So that every size can be tried without a download; what it makes says of itself that it is noise.
    """
    others = (other for other in models.values() if other.is_builtin and other != entry)
    return next(others, None) if entry.is_builtin else None


def entry_of(fields: Mapping[str, Any], models: Mapping[str, ModelEntry]) -> ModelEntry:
    """The model that a request names, or the default one; problem `unknown_model` where there is none."""
    name = fields.get("model") or next(iter(models))
    entry = models.get(name) if isinstance(name, str) else None
    if entry is None:
        message = f"there is no model {str(name)[:100]!r}; there are {', '.join(models)}"
        raise Problem(422, "unknown_model", message)
    return entry


def check_against_model(spec: JobSpec, entry: ModelEntry) -> None:
    """Refuse what the model cannot make, naming the rule and the nearest value that keeps it."""
    if entry.uses_prompt and not spec.prompt:
        raise Problem(422, "empty_prompt", f"prompt: model {entry.name} needs one")
    if not entry.allows_shape(spec.width, spec.height, spec.num_frames):
        asked, taken = f"{spec.width}x{spec.height}x{spec.num_frames}", list(entry.shapes)
        message = (
            f"width x height x num_frames must be {' or '.join(taken)} for model {entry.name}, not {asked}"
        )
        raise Problem(422, "shape_not_taken", message, data={"field": "width", "shapes": taken})
    for name in ("width", "height"):
        size = getattr(spec, name)
        if size % entry.size_multiple:
            nearest = max(entry.size_multiple, round(size / entry.size_multiple) * entry.size_multiple)
            raise Problem(
                422,
                "size_not_a_multiple",
                f"{name} must be a multiple of {entry.size_multiple} for model {entry.name}, not {size}; "
                f"{nearest} would do",
                data={"field": name, "multiple": entry.size_multiple, "nearest": nearest},
            )
    if not entry.allows_frames(spec.num_frames):
        step, first = entry.frames_step, int(entry.first_frame_alone)
        nearest = max(1, round((spec.num_frames - first) / step)) * step + first
        raise Problem(
            422,
            "bad_frame_count",
            f"num_frames must be {entry.frame_rule} for model {entry.name}, not {spec.num_frames}; "
            f"{nearest} would do",
            data={"field": "num_frames", "rule": entry.frame_rule, "nearest": nearest},
        )
    _check_limits(spec, entry)
    if entry.source == builtin.SOURCE:
        reason = builtin.refusal(
            prompt=spec.prompt, height=spec.height, width=spec.width, frames=spec.num_frames
        )
        if reason is not None:
            raise Problem(422, "beyond_model", reason)


def _check_inputs(spec: JobSpec, entry: ModelEntry, between: bool) -> None:
    """Refuse what the model does not take, and what contradicts itself."""
    asked = {"last_image": between, "loop": spec.loop, "fs": spec.fs is not None}
    for name in (name for name, given in asked.items() if given and name not in entry.inputs):
        message = f"model {entry.name} takes no {name}"
        taken = sorted(entry.inputs)
        raise Problem(422, "input_not_taken", message, data={"field": name, "inputs": taken})
    if spec.loop and between:
        message = "a loop ends where it began: loop and last_image do not go together"
        raise Problem(422, "contradicting_inputs", message, data={"field": "loop"})
    if (spec.loop or between) and spec.num_frames < 2:
        message = f"between two images there are at least 2 frames, not {spec.num_frames}"
        raise Problem(422, "bad_frame_count", message, data={"field": "num_frames", "nearest": 2})


def _check_limits(spec: JobSpec, entry: ModelEntry) -> None:
    limits = entry.limits
    for what, value, limit in (
        ("width x height", spec.width * spec.height, limits.max_pixels),
        ("num_frames", spec.num_frames, limits.max_frames),
        ("num_inference_steps", spec.num_inference_steps, limits.max_steps),
    ):
        if value > limit:
            message = f"{what} is {value:,}; model {entry.name} takes at most {limit:,}"
            raise Problem(422, "over_model_limit", message, data={"field": what, "limit": limit})
