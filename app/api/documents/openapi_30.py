"""The OpenAPI document in version 3.0, for tools that do not know 3.1, as Swagger UI 4.

3.0 has no type null (https://spec.openapis.org/oas/v3.0.3#schema-object), no `const` and no list of examples;
an exclusive limit is a mark beside the limit; nothing stands beside a reference.
"""

from typing import Any

from app.jobs import Json

VERSION = "3.0.3"
NULL: Json = {"type": "null"}


def in_version_30(document: Json) -> Json:
    """Return the same document in version 3.0. The argument is not changed."""
    older: Json = _converted(document)
    older["info"].pop("summary", None)
    return {**older, "openapi": VERSION}


def _converted(value: Any) -> Any:
    if isinstance(value, list):
        return [_converted(each) for each in value]
    if not isinstance(value, dict):
        return value
    schema = {key: _converted(each) for key, each in value.items()}
    if isinstance(kinds := schema.get("anyOf"), list) and NULL in kinds:
        schema = _nullable(schema, [kind for kind in kinds if kind != NULL])
    if isinstance(schema.get("$ref"), str) and len(schema) > 1:
        reference = {"$ref": schema.pop("$ref")}
        schema = {"allOf": [reference], **schema}
    for limit, name in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(limit), int | float) and not isinstance(schema[limit], bool):
            schema |= {name: schema[limit], limit: True}
    if isinstance(examples := schema.get("examples"), list):
        del schema["examples"]
        schema.setdefault("example", examples[0] if examples else None)
    if "const" in schema and "enum" not in schema and not isinstance(schema["const"], dict):
        schema["enum"] = [schema.pop("const")]
    return schema


def _nullable(schema: Json, kinds: list[Any]) -> Json:
    rest = {key: each for key, each in schema.items() if key != "anyOf"}
    if len(kinds) == 1:
        return {**kinds[0], **rest, "nullable": True}
    return {**rest, "anyOf": kinds, "nullable": True}
