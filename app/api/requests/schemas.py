"""Request bodies for the OpenAPI document. They are read by hand (two encodings, limits before parsing), so
they are described by hand: from `JobSpec`, less what the model's defaults make optional."""

from typing import Any

from app.jobs import JobSpec, Json

EXAMPLE: Json = {
    "prompt": "the camera pans slowly to the left",
    "num_frames": 25,
    "width": 256,
    "height": 256,
}
MAX_JOBS = 32
EXAMPLE_URL = "data:image/jpeg;base64,..."
DATA_URL: Json = {"type": "string", "format": "data-url", "description": "A data URL."}
FILE: Json = {"type": "string", "format": "binary", "description": "JPEG, PNG or WebP."}


def _spec_schema() -> Json:
    schema = JobSpec.model_json_schema(ref_template="#/components/schemas/{model}")
    # Inlined, so that the document needs no components of its own for this.
    strategies = schema.pop("$defs", {}).get("DecodeStrategy", {})
    schema["properties"]["decode_strategy"] = {
        "type": "string",
        "enum": strategies.get("enum", []),
        "default": "auto",
    }
    schema["required"] = ["prompt"]
    for name in ("title", "description"):
        schema.pop(name, None)
    return schema


def _body(json_schema: Json, form_schema: Json | None = None, *, required: bool = True) -> dict[str, Any]:
    content: Json = {"application/json": {"schema": json_schema}}
    if form_schema is not None:
        content["multipart/form-data"] = {"schema": _without_null(form_schema)}
    return {"requestBody": {"required": required, "content": content}}


def _without_null(schema: Json) -> Json:
    """A form has no null: a field that is not meant is left out."""
    properties = {}
    for name, field in schema["properties"].items():
        kinds = [kind for kind in field.get("anyOf", []) if kind.get("type") != "null"]
        rest = {key: value for key, value in field.items() if key != "anyOf" and value is not None}
        properties[name] = {**rest, **kinds[0]} if kinds else rest
    return {**schema, "properties": properties}


def _with_image(image: Json) -> Json:
    schema = _spec_schema()
    schema["properties"] = {"image": image, "last_image": _last(image), **schema["properties"]}
    schema["required"] = ["image", "prompt"]
    return schema


def _last(image: Json) -> Json:
    words = "What the video ends with, for models whose inputs name it."
    return {**image, "description": f"{words} {image.get('description', '')}".strip()}


def _redecode_schema() -> Json:
    names = ("decode_strategy", "frames_per_chunk", "exact_only", "memory_budget_bytes")
    properties = _spec_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: properties[name] for name in names},
    }


def _plan_schema() -> Json:
    schema = _spec_schema()
    schema["required"] = []
    return schema


def _video_schema(image: Json) -> Json:
    schema = _spec_schema()
    own = {
        "input_reference": image,
        "seconds": {"type": "string", "example": "4", "description": "Rounded to what the model can make."},
        "size": {"type": "string", "example": "768x512", "description": "WIDTHxHEIGHT in pixels."},
    }
    own["last_image"] = _last(image)
    return {
        **schema,
        "properties": {**own, **schema["properties"]},
        "required": ["input_reference", "prompt"],
    }


def _several() -> Json:
    """Jobs in a list; what stands beside the list holds for every job that does not say otherwise."""
    one = {**_with_image(DATA_URL), "required": []}
    jobs = {"type": "array", "minItems": 1, "maxItems": MAX_JOBS, "items": one}
    return {**one, "properties": {"jobs": jobs, **one["properties"]}, "required": ["jobs"]}


def _repeated(schema: Json) -> Json:
    """Every field may come several times: a value for each job."""
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
PLAN_BODY = _body({**_plan_schema(), "example": EXAMPLE}, _plan_schema())
REDECODE_BODY = _body({**_redecode_schema(), "example": {"decode_strategy": "per_frame"}}, required=False)
SESSION_BODY = _body(
    {
        "type": "object",
        "properties": {"key": {"type": "string"}},
        "required": ["key"],
        "example": {"key": "ff_..."},
    }
)
