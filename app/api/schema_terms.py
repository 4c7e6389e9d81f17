"""The words that response schemas are written in: plain types, objects, lists and null."""

from app.jobs import Json

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "number"}
WHOLE: Json = {"type": "integer"}
YES_OR_NO: Json = {"type": "boolean"}
ANY_OBJECT: Json = {"type": "object"}
TIME: Json = {"type": "string", "format": "date-time"}
BYTES: Json = {"type": "integer", "description": "Bytes."}
SECONDS: Json = {"type": "number", "description": "Seconds."}


def object_of(required: dict[str, Json], **optional: Json) -> Json:
    """Return the schema of an object; it may have further fields."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def or_null(schema: Json) -> Json:
    """Return the schema of a value that may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def list_of(items: Json) -> Json:
    """Return the schema of a list."""
    return {"type": "array", "items": items}
