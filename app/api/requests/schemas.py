"""Schemas of the request bodies in the OpenAPI document.

The routes parse bodies themselves (two encodings, limits before parsing), so FastAPI cannot derive the
schemas. They are built from `JobSpec`; fields with a default of the model are optional.
"""

from typing import Any

from app.fields.keyframes import MOST_KEYFRAMES, PICTURES
from app.fields.loras import MOST_LORAS
from app.jobs import MEASURED, JobSpec, Json

EXAMPLE: Json = {
    "prompt": "the camera pans slowly to the left",
    "num_frames": 25,
}
MAX_JOBS = 32
REDECODE_FIELDS = (
    "decode_strategy",
    "frames_per_chunk",
    "exact_only",
    "memory_budget_bytes",
    "embed_metadata",
)
EXAMPLE_URL = "data:image/jpeg;base64,..."
DATA_URL: Json = {"type": "string", "format": "data-url", "description": "A data URL."}
FILE: Json = {
    "type": "string",
    "format": "binary",
    "description": "JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP or GIF.",
}


def _spec_schema() -> Json:
    schema = JobSpec.model_json_schema(ref_template="#/components/schemas/{model}")
    # Inlined, so that the document needs no further components.
    inner = schema.pop("$defs", {})
    strategies, lora = inner.get("DecodeStrategy", {}), inner.get("LoraChoice", {})
    keyframe = inner.get("KeyFrame", {})
    schema["properties"]["decode_strategy"] = {
        "type": "string",
        "enum": strategies.get("enum", []),
        "default": "auto",
    }
    for name in ("title", "description"):
        lora.pop(name, None)
        keyframe.pop(name, None)
    schema["properties"]["loras"] |= {"items": lora, "maxItems": MOST_LORAS}
    schema["properties"]["keyframes"] |= {"items": keyframe, "maxItems": MOST_KEYFRAMES}
    schema["properties"]["seed"]["minimum"] = -1  # a request for a random one; a job's own begins at 0
    schema["required"] = ["prompt"]
    for name in ("title", "description"):
        schema.pop(name, None)
    for name in MEASURED:
        schema["properties"].pop(name)
    return schema


def _body(json_schema: Json, form_schema: Json | None = None, *, required: bool = True) -> dict[str, Any]:
    content: Json = {"application/json": {"schema": json_schema}}
    if form_schema is not None:
        content["multipart/form-data"] = {"schema": _without_null(form_schema)}
    return {"requestBody": {"required": required, "content": content}}


def _without_null(schema: Json) -> Json:
    """Return the schema without null, which a form cannot express: it leaves the field out."""
    properties = {}
    for name, field in schema["properties"].items():
        kinds = [kind for kind in field.get("anyOf", []) if kind.get("type") != "null"]
        rest = {key: value for key, value in field.items() if key != "anyOf" and value is not None}
        only = kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}
        properties[name] = {**rest, **only}
    return {**schema, "properties": properties}


def _with_image(image: Json) -> Json:
    schema = _spec_schema()
    schema["properties"] = {"image": _first(image), "last_image": _last(image), **schema["properties"]}
    schema["required"] = ["prompt"]  # and image, or continue_from
    return _with_keyframe_pictures(schema, image)


def _with_keyframe_pictures(schema: Json, image: Json) -> Json:
    """Return the schema with the pictures of key frames: in JSON with each, in a form as files."""
    properties = dict(schema["properties"])
    if image.get("format") == "binary":
        properties |= {
            name: {**image, "description": f"The picture of `keyframes[{number}]`."}
            for number, name in enumerate(PICTURES)
        }
    else:
        one = properties["keyframes"]["items"]
        one = {**one, "properties": {"image": image, **one["properties"]}}
        properties["keyframes"] = {**properties["keyframes"], "items": one}
    return {**schema, "properties": properties}


def _first(image: Json) -> Json:
    purpose = "The first image; required unless `continue_from` gives it."
    return {**image, "description": f"{purpose} {image.get('description', '')}".strip()}


def _last(image: Json) -> Json:
    purpose = "The last image of the video, for models whose inputs list it."
    return {**image, "description": f"{purpose} {image.get('description', '')}".strip()}


def _redecode_schema() -> Json:
    properties = _spec_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: properties[name] for name in REDECODE_FIELDS},
    }


def _plan_schema(image: Json) -> Json:
    schema = _with_image(image)
    measured = JobSpec.model_json_schema()["properties"]
    schema["properties"] |= {name: measured[name] for name in sorted(MEASURED - {"keyframe_sizes"})}
    schema["required"] = []
    return schema


def _video_schema(image: Json) -> Json:
    schema = _spec_schema()
    own = {
        "input_reference": _first(image),
        "seconds": {
            "type": "string",
            "example": "4",
            "description": "Rounded to a length that the model can make.",
        },
        "size": {
            "type": "string",
            "example": "768x512",
            "description": "WIDTHxHEIGHT in pixels, or auto: like the image.",
        },
    }
    own["last_image"] = _last(image)
    schema = {
        **schema,
        "properties": {**own, **schema["properties"]},
        "required": ["prompt"],
    }
    return _with_keyframe_pictures(schema, image)


def _remix_schema() -> Json:
    schema = _video_schema(DATA_URL)
    # The earlier video's values stand where others have a default.
    properties = {
        name: {key: value for key, value in field.items() if key != "default"}
        for name, field in schema["properties"].items()
        if name not in ("input_reference", "last_image", "continue_from", "keyframes", *PICTURES)
    }
    return {**schema, "properties": properties, "required": ["prompt"]}


def _several() -> Json:
    """Return the schema of a batch: a list of jobs, and fields beside it that are defaults for every job."""
    one = {**_with_image(DATA_URL), "required": []}
    jobs = {"type": "array", "minItems": 1, "maxItems": MAX_JOBS, "items": one}
    return {**one, "properties": {"jobs": jobs, **one["properties"]}, "required": ["jobs"]}


def _repeated(schema: Json) -> Json:
    """Return the schema of a form in which each field may occur several times, once for each job."""
    properties = {
        name: {"type": "array", "items": field, "maxItems": MAX_JOBS}
        for name, field in _without_null(schema)["properties"].items()
    }
    return {**schema, "properties": properties}


GENERATE_BODY = _body(
    {
        **_with_image(DATA_URL),
        "example": {"image": EXAMPLE_URL, **EXAMPLE},
    },
    _with_image(FILE),
)
BATCH_BODY = _body(
    {**_several(), "example": {"prompt": "a slow pan to the left", "jobs": [{"image": EXAMPLE_URL}] * 2}},
    _repeated(_with_image(FILE)),
)
VIDEO_BODY = _body(
    _video_schema({"type": "object", "properties": {"image_url": DATA_URL}}),
    _video_schema(FILE),
)
REMIX_BODY = _body(
    {**_remix_schema(), "example": {"prompt": "the same scene at night"}}, _remix_schema(), required=True
)
PLAN_BODY = _body(
    {**_plan_schema(DATA_URL), "example": {**EXAMPLE, "image_size": "1080x1920"}}, _plan_schema(FILE)
)
REDECODE_BODY = _body({**_redecode_schema(), "example": {"decode_strategy": "per_frame"}}, required=False)
SESSION_BODY = _body(
    {
        "type": "object",
        "properties": {"key": {"type": "string"}},
        "required": ["key"],
        "example": {"key": "ff_..."},
    }
)
