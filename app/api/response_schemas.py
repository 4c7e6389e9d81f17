"""Schemas of the response bodies in the OpenAPI document, for the JSON that `views` makes.

Later versions may add fields to any object; the required fields listed here stay.
"""

from typing import Any

from app.api.job_schemas import DECODE, DECODE_PLAN, DENOISE, DOWNLOAD, RESULT, RUNG, WEBHOOK
from app.api.schema_terms import ANY_OBJECT, NUMBER, TEXT, TIME, WHOLE, YES_OR_NO
from app.api.schema_terms import list_of as _list
from app.api.schema_terms import object_of as _object
from app.api.schema_terms import or_null as _or_null
from app.jobs import JobStatus, Json, Stage
from app.media.formats.table import FORMATS
from app.models.downloads.storage import Place


def answer(schema: Json, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI `responses` entry of a route that answers with JSON of this schema."""
    return {status: {"content": {"application/json": {"schema": schema}}}}


FAILURE = _object({"code": TEXT, "message": TEXT}, data=ANY_OBJECT)
LINKS = _object(
    {"self": TEXT, "events": TEXT},
    image=TEXT,
    last_image=TEXT,
    keyframes=_list(TEXT),
    previews=_list(TEXT),
    video=TEXT,
    formats=_object({}, **dict.fromkeys(FORMATS, TEXT)),
    thumbnail=TEXT,
    first_frame=TEXT,
    last_frame=TEXT,
    redecode=TEXT,
    retry=TEXT,
    finish_early=TEXT,
)
PER_SIDE = _object({"left": WHOLE, "top": WHOLE, "right": WHOLE, "bottom": WHOLE})
PICTURE = _object(
    {
        "width": WHOLE,
        "height": WHOLE,
        "cut": PER_SIDE,
        "cut_share": {"type": "number", "minimum": 0, "maximum": 1},
        "bars": PER_SIDE,
        "stretch": NUMBER,
        "detail": TEXT,
    }
)
PICTURES = _object(
    {"image": _or_null(PICTURE), "last_image": _or_null(PICTURE)}, keyframes=_list(_or_null(PICTURE))
)
ETA_RANGE = _object(
    {"low_seconds": {"type": "number", "minimum": 0}, "high_seconds": {"type": "number", "minimum": 0}}
)
JOB = _object(
    {
        "id": TEXT,
        "status": {"type": "string", "enum": list(JobStatus)},
        "stage": {"type": "string", "enum": list(Stage)},
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "queue_position": _or_null(
            {"type": "integer", "minimum": 1, "maximum": 10000, "description": "10000 means that or later."}
        ),
        "eta_seconds": _or_null({"type": "number", "minimum": 0}),
        "eta_range": _or_null(ETA_RANGE),
        "cancel_requested": YES_OR_NO,
        "model": TEXT,
        "seed": {"type": "string", "pattern": "^[0-9]+$"},
        "notice": _or_null(TEXT),
        "resumable": YES_OR_NO,
        "not_resumable_because": _or_null(TEXT),
        "request": ANY_OBJECT,
        "pictures": PICTURES,
        "continued_from": _or_null(TEXT),
        "plan": _or_null(DECODE_PLAN),
        "download": _or_null(DOWNLOAD),
        "denoise": _or_null(DENOISE),
        "decode": _or_null(DECODE),
        "result": _or_null(RESULT),
        "error": _or_null(FAILURE),
        "webhook": _or_null(WEBHOOK),
        "attempts": {"type": "integer", "minimum": 0},
        "preemptions": {"type": "integer", "minimum": 0},
        "links": LINKS,
        "created_at": TIME,
        "started_at": _or_null(TIME),
        "finished_at": _or_null(TIME),
        "expires_at": _or_null(TIME),
        "expired": YES_OR_NO,
        "key_name": _or_null(TEXT),
        "waiting": _or_null(ANY_OBJECT),
        "held_because": _or_null(TEXT),
        "gave_way": _or_null(TEXT),
        "handed_over": _or_null(ANY_OBJECT),
    }
)
JOBS = _object({"jobs": _list(JOB)})
PAGE = _object({"jobs": _list(JOB), "next_cursor": _or_null(TEXT)})

DELETED = _object({"id": TEXT, "deleted": YES_OR_NO})
_SHAPE = _object({"frames": WHOLE, "height": WHOLE, "width": WHOLE})
PLAN = _object(
    {
        "model": TEXT,
        "plan": DECODE_PLAN,
        "needed_bytes": {"type": "integer", "minimum": 0},
        "rungs": _list(RUNG),
        "largest": _or_null(_SHAPE),
        "eta_seconds": _or_null({"type": "number", "minimum": 0}),
        "eta_range": _or_null(ETA_RANGE),
        "request": ANY_OBJECT,
        "pictures": PICTURES,
    }
)

_DEVICE = _object(
    {
        "worker_id": TEXT,
        "host": TEXT,
        "job_id": _or_null(TEXT),
        "worker_state": {"type": "string", "enum": ["active", "draining", "paused", "lost"]},
        "heartbeat_at": TIME,
    }
)
_GPU = _object({"holders": _list(ANY_OBJECT), "uuid": TEXT, "index": WHOLE, "name": TEXT, "state": TEXT})
_UNUSED_GPU = _object({"uuid": TEXT, "name": TEXT, "reason": TEXT, "detail": TEXT, "advice": TEXT})
DEVICES = _object(
    {
        "devices": _list(_DEVICE),
        "gpus": _list(_GPU),
        "unused_gpus": _list(_UNUSED_GPU),
        "driver_state": TEXT,
        "reserve_bytes": WHOLE,
    }
)
_BYTES = _list(WHOLE)
_MEMORY = _object(
    {
        "worker_id": TEXT,
        "times": _list(TIME),
        "total_bytes": _BYTES,
        "free_bytes": _BYTES,
        "own_bytes": {**_BYTES, "description": "What the worker holds; other programs hold the rest."},
    }
)
_DECODE = _object(
    {
        "job_id": _or_null(TEXT),
        "worker_id": TEXT,
        "started_at": TIME,
        "ended_at": {**_or_null(TIME), "description": "Null while it runs."},
        "predicted_peak_bytes": _or_null(WHOLE),
        "measured_peak_bytes": _or_null(WHOLE),
    }
)
DEVICE_MEMORY = _object({"now": TIME, "devices": _list(_MEMORY), "decodes": _list(_DECODE)})
_STORAGE = _object(
    {
        "place": {"type": "string", "enum": list(Place)},
        "format": TEXT,
        "on_disk": YES_OR_NO,
        "size_bytes": _or_null(WHOLE),
        "size_from": {**_or_null(TEXT), "description": "disk, hub or configuration: then it is computed."},
        "download_bytes": {**_or_null(WHOLE), "description": "What a download would bring now."},
    }
)
_FIT = _object(
    {
        "fits": {**YES_OR_NO, "description": "Whether the model's default video fits a device of a worker."},
        "device": TEXT,
        "placement": _or_null(TEXT),
        "decode": _or_null(TEXT),
        "detail": TEXT,
    }
)
_MODEL = _object(
    {
        "name": TEXT,
        "description": TEXT,
        "notice": _or_null(TEXT),
        "size_multiple": WHOLE,
        "frame_rule": TEXT,
        "shapes": _list(TEXT),
        "inputs": _list(TEXT),
        "requires": _list(TEXT),
        "keyframes": _or_null(_object({"most": WHOLE, "apart": WHOLE, "rule": TEXT})),
        "defaults": ANY_OBJECT,
        "limits": ANY_OBJECT,
        "loras": _list(ANY_OBJECT),
        "fixed": ANY_OBJECT,
        "resumable": YES_OR_NO,
        "not_resumable_because": _or_null(TEXT),
        "is_default": YES_OR_NO,
        "available": YES_OR_NO,
        "unavailable_because": _or_null(TEXT),
        "storage": _or_null(_STORAGE),
        "fits_here": _or_null(_FIT),
    }
)
MODELS = _object({"models": _list(_MODEL)})
_LORA = _object(
    {
        "name": TEXT,
        "size_bytes": _or_null(WHOLE),
        "ranks": _list(WHOLE),
        "layers": _or_null(WHOLE),
        "left_out": _or_null(WHOLE),
        "architectures": _list(TEXT),
        "models": _list(TEXT),
        "unusable_because": _or_null(TEXT),
    }
)
LORAS = _object({"loras": _list(_LORA)})
LOG_LEVEL = _object({"level": {"type": "string", "enum": ["debug", "info", "warning", "error"]}})
_LOOPS = _list(_object({"name": TEXT, "last_turn_seconds": NUMBER, "silent": YES_OR_NO, "failures": WHOLE}))
HEALTH = _object(
    {
        "status": {"type": "string", "enum": ["ok", "failing"]},
        "version": TEXT,
        "storage": TEXT,
        "loops": _LOOPS,
    }
)
READINESS = _object(
    {
        "ready": YES_OR_NO,
        "workers": WHOLE,
        "models": {"type": "object", "additionalProperties": YES_OR_NO},
        "unavailable": {"type": "object", "additionalProperties": TEXT},
        "devices": _list(
            _object({"name": TEXT, "kind": TEXT, "state": TEXT, "loaded_model": _or_null(TEXT)})
        ),
        "queued": WHOLE,
        "running": WHOLE,
        "storage": TEXT,
        "loops": _LOOPS,
    }
)

SESSION = _object(
    {"needs_key": YES_OR_NO, "key_name": _or_null(TEXT), "admin": YES_OR_NO, "embed_metadata": YES_OR_NO}
)

VIDEO = _object(
    {
        "id": TEXT,
        "object": {"type": "string", "enum": ["video"]},
        "model": TEXT,
        "status": {"type": "string", "enum": ["queued", "in_progress", "completed", "failed"]},
        "progress": {"type": "integer", "minimum": 0, "maximum": 100},
        "created_at": WHOLE,
        "completed_at": _or_null(WHOLE),
        "expires_at": _or_null(WHOLE),
        "seconds": TEXT,
        "size": TEXT,
        "prompt": TEXT,
        "remixed_from_video_id": _or_null(TEXT),
        "error": _or_null(_object({"code": TEXT, "message": TEXT})),
        "expired": YES_OR_NO,
    }
)
VIDEOS = _object(
    {
        "object": {"type": "string", "enum": ["list"]},
        "data": _list(VIDEO),
        "first_id": _or_null(TEXT),
        "last_id": _or_null(TEXT),
        "has_more": YES_OR_NO,
    }
)
VIDEO_DELETED = _object(
    {"id": TEXT, "object": {"type": "string", "enum": ["video.deleted"]}, "deleted": YES_OR_NO}
)
OPENAI_MODEL = _object(
    {"id": TEXT, "object": {"type": "string", "enum": ["model"]}, "created": WHOLE, "owned_by": TEXT}
)
OPENAI_MODELS = _object({"object": {"type": "string", "enum": ["list"]}, "data": _list(OPENAI_MODEL)})
OPENAI_ERROR = _object({"error": ANY_OBJECT})
