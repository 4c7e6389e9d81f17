"""The schemas that have a name in the OpenAPI document. Routes write them out in full."""

from typing import Any

from app.api import job_schemas, problems, response_schemas
from app.api.documents import error_codes
from app.jobs import Json

CODE = error_codes.schema(
    "request", "Stable code for programs. FIELD stands for the name of a field. Later versions add codes."
)
JOB_CODE = error_codes.schema(
    "job", "Why a job failed: a stable code for programs. Later versions add codes."
)
NAMED: dict[str, Json] = {
    "Job": response_schemas.JOB,
    "JobPage": response_schemas.PAGE,
    "Jobs": response_schemas.JOBS,
    "Plan": response_schemas.PLAN,
    "DecodePlan": job_schemas.DECODE_PLAN,
    "Rung": job_schemas.RUNG,
    "Placement": job_schemas.PLACEMENT,
    "Tiles": job_schemas.TILES,
    "Denoise": job_schemas.DENOISE,
    "Decode": job_schemas.DECODE,
    "DecodeRetry": job_schemas.RETRY,
    "Result": job_schemas.RESULT,
    "Sound": job_schemas.SOUND,
    "Webhook": job_schemas.WEBHOOK,
    "JobError": response_schemas.FAILURE,
    "Links": response_schemas.LINKS,
    "Pictures": response_schemas.PICTURES,
    "Picture": response_schemas.PICTURE,
    "Sides": response_schemas.PER_SIDE,
    "Devices": response_schemas.DEVICES,
    "Models": response_schemas.MODELS,
    "Loras": response_schemas.LORAS,
    "LogLevel": response_schemas.LOG_LEVEL,
    "Health": response_schemas.HEALTH,
    "Readiness": response_schemas.READINESS,
    "Session": response_schemas.SESSION,
    "Video": response_schemas.VIDEO,
    "Videos": response_schemas.VIDEOS,
    "VideoDeleted": response_schemas.VIDEO_DELETED,
    "OpenAIModel": response_schemas.OPENAI_MODEL,
    "OpenAIModels": response_schemas.OPENAI_MODELS,
    "OpenAIError": response_schemas.OPENAI_ERROR,
    "Problem": problems.PROBLEM_SCHEMA,
}


def with_names(document: Json) -> Json:
    """Return the document with a reference in place of each named schema, wherever it stands."""
    components = document.setdefault("components", {})
    schemas = {name: _parts_replaced(schema) for name, schema in NAMED.items()}
    schemas |= {"ErrorCode": CODE, "JobErrorCode": JOB_CODE}
    for name, code in (("Problem", "ErrorCode"), ("JobError", "JobErrorCode")):
        schemas[name]["properties"]["code"] = {"$ref": f"#/components/schemas/{code}"}
    return {
        **document,
        "paths": _replaced(document["paths"]),
        "components": {**components, "schemas": {**components.get("schemas", {}), **schemas}},
    }


def _replaced(value: Any) -> Any:
    if isinstance(value, dict):
        name = _name_of(value) if value.get("type") == "object" else None
        return _parts_replaced(value) if name is None else {"$ref": f"#/components/schemas/{name}"}
    return [_replaced(each) for each in value] if isinstance(value, list) else value


def _name_of(schema: Json) -> str | None:
    # FastAPI adds these to the schema of an answer as a whole, and makes limits 0.0 of 0, which is equal.
    added = {"title": schema.get("title"), "additionalProperties": True}
    bare = {key: value for key, value in schema.items() if added.get(key) != value}
    return next((name for name, named in NAMED.items() if named == bare), None)


def _parts_replaced(value: Json) -> Json:
    return {key: _replaced(each) for key, each in value.items()}
