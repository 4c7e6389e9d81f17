"""Checks the pictures of a request beyond the first: a last image, key frames, what the model must have."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from app.api.problems import Problem
from app.fields.keyframes import PICTURES, counted_from_start
from app.jobs import JobSpec
from app.models.entries import ModelEntry
from app.pipelines.frames import FORMS


def keyframes_from_text(text: str) -> object:
    """Return the value of a form's field, which is JSON. Raises `Problem`."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f'keyframes must be JSON such as [{{"frame": 24, "strength": 0.8}}]: {error}'
        raise Problem(422, "invalid_keyframes", message, data={"field": "keyframes"}) from None
    return value


def not_taken(name: str, entry: ModelEntry, models: Mapping[str, ModelEntry]) -> Problem:
    """Return the problem of an input that the model does not take; it names the models that do."""
    supported = sorted(entry.inputs)
    others = [other.name for other in models.values() if name in other.inputs]
    message = (
        f"model {entry.name} does not support {name}; it supports {', '.join(supported) or 'none'}. "
        f"Models that support {name}: {', '.join(others) or 'none'}"
    )
    return Problem(
        422, "input_not_taken", message, data={"field": name, "inputs": supported, "models": others}
    )


def with_frames_checked(spec: JobSpec, entry: ModelEntry, *, has_last_image: bool) -> JobSpec:
    """Return the specification with its key frames counted from the first frame.

    Raises `Problem` for a frame that the video does not have, that has two pictures, also of two frames that
    the model takes as one, or where the model takes none.
    """
    if not spec.keyframes:
        return spec
    keyframes = counted_from_start(spec.keyframes, spec.num_frames)
    form = FORMS[entry.pipeline]
    last = spec.num_frames - 1
    taken = {form.place(0): "image"} | ({form.place(last): "last_image"} if has_last_image else {})
    for number, (given, each) in enumerate(zip(spec.keyframes, keyframes, strict=True)):
        if not 0 <= each.frame < spec.num_frames:
            nearest = form.nearest(each.frame, spec.num_frames, taken)
            message = f"frame {given.frame} is not in a video of {spec.num_frames} frames"
            raise Problem(
                422, "keyframe_out_of_range", f"keyframes.{number}: {message}", data=_place(number, nearest)
            )
        if not form.allows(each.frame, spec.num_frames):
            nearest = form.nearest(each.frame, spec.num_frames, taken)
            message = f"model {entry.name} takes key frames at {form.rule}, not at {each.frame}"
            if nearest is not None:
                message += f"; the nearest is {nearest}"
            raise Problem(
                422, "keyframe_not_there", f"keyframes.{number}: {message}", data=_place(number, nearest)
            )
        place = form.place(each.frame)
        if place in taken:
            held = form.frames_of(place, spec.num_frames)
            where = f"frame {each.frame} has" if len(held) == 1 else f"frames {held[0]} to {held[-1]} have"
            message = f"{where} the picture of {taken[place]} already"
            raise Problem(422, "duplicate_keyframe", f"keyframes.{number}: {message}", data=_place(number))
        taken[place] = f"keyframes.{number}"
    return spec.model_copy(update={"keyframes": keyframes})


def _place(number: int, nearest_frame: int | None = None) -> dict[str, Any]:
    nearest = {} if nearest_frame is None else {"nearest_frame": nearest_frame}
    return {"field": "keyframes", "index": number, **nearest}


def require_pictures(spec: JobSpec, entry: ModelEntry, given: Collection[str]) -> None:
    """Raise `Problem` unless the pictures that are `given`, by field name, are those that the job needs."""
    for number, name in enumerate(PICTURES):
        if number < len(spec.keyframes) and name not in given:
            message = f"keyframes.{number} has no picture: send it as image in JSON, or as the file {name}"
            raise Problem(422, "missing_keyframe_image", message, data=_place(number))
        if number >= len(spec.keyframes) and name in given:
            message = f"the file {name} belongs to no entry of keyframes, which has {len(spec.keyframes)}"
            raise Problem(422, "unknown_field", message, data={"field": name})
    if "last_image" in entry.requires and "last_image" not in given:
        message = (
            f"model {entry.name} makes a video between two images: send the file field 'last_image', too"
        )
        raise Problem(422, "missing_last_image", message, data={"field": "last_image"})
