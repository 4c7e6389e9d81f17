"""Problem documents (RFC 9457), the form of every error response, and the mapping of errors to them.

Each `code` is stable.
"""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from adaptive.errors import UnsupportedVae
from app.media.images import ImageRejected
from app.models.components import ModelUnavailable
from app.models.loras.choice import LoraRefused
from app.scheduling.admission import FitsNowhere
from app.scheduling.usable_profile import ProfilePending
from app.service.webhooks import WebhookRefused
from app.store import (
    DataFolderUnusable,
    IdempotencyConflict,
    ImageMissing,
    JobDeleted,
    NoSuchJob,
    QueueFull,
    ResultExpired,
    StoreUnavailable,
    WrongState,
)

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string", "example": "urn:framefit:problem:does_not_fit"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "Stable code for programs.", "example": "does_not_fit"},
    },
}


class Problem(Exception):
    """An error response of status 4xx or 5xx. `data` holds further members of the document."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.data = dict(data or {})
        super().__init__(detail)

    def response(self) -> Response:
        """Return the document as a response."""
        body = {
            "type": f"urn:framefit:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.data,
        }
        return _json(body, self, MEDIA_TYPE)


def _json(body: Mapping[str, Any], problem: Problem, media_type: str) -> Response:
    # ASCII only: a problem may quote a client's text, and a lone surrogate cannot be encoded as UTF-8.
    return Response(json.dumps(body), problem.status, headers=problem.headers, media_type=media_type)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI `responses` of a route that may answer with these problem statuses."""
    content = {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def problem_of(error: Exception) -> Problem | None:
    """Return the problem of an expected error, or None for any other exception."""
    retry = {"Retry-After": str(RETRY_SECONDS)}
    match error:
        case Problem():
            return error
        case NoSuchJob():
            return Problem(404, "no_such_job", str(error))
        case JobDeleted():
            return Problem(410, "job_deleted", str(error), data={"erased": error.job.erased_at is not None})
        case ResultExpired():
            return Problem(410, "result_expired", str(error))
        case ImageMissing():
            return Problem(410, "image_missing", str(error))
        case WrongState():
            return Problem(409, "wrong_state", str(error), data={"job_status": error.job.status})
        case IdempotencyConflict():
            return Problem(422, "idempotency_key_reused", str(error), data={"job_id": error.job_id})
        case QueueFull():
            data = {"queued": error.queued, "limit": error.limit}
            return Problem(429, "queue_full", str(error), data=data)
        case DataFolderUnusable():  # its words name a path
            return Problem(503, "data_folder_unusable", f"the data folder {error.fault}", headers=retry)
        case StoreUnavailable():
            # The error names the database's address, which is nobody's business; the log has it.
            message = "the job store is unavailable: try again; the service's log has the reason"
            return Problem(503, "store_unavailable", message, headers=retry)
        case ImageRejected():
            status = 413 if error.code == "image_too_large" else 422
            return Problem(status, error.code, str(error))
        case WebhookRefused():
            return Problem(422, error.code, str(error))
        case ProfilePending():
            detail = f"the memory profile of model {error} is still being traced: try again in some seconds"
            if error.reason is not None:
                detail = f"model {error} cannot be read now and is tried again: {error.reason}"
            return Problem(503, "profile_pending", detail, headers=retry)
        case ModelUnavailable():
            return Problem(422, "model_unavailable", str(error))
        case LoraRefused():
            return Problem(422, error.code, str(error), data=error.data)
        case UnsupportedVae():
            return Problem(422, "strategy_not_possible", str(error))
        case FitsNowhere():
            return Problem(422, "does_not_fit", str(error), data=_fit_data(error))
        case ValidationError():
            return problem_of_validation(error)
    return None


def _fit_data(error: FitsNowhere) -> dict[str, Any]:
    largest = error.largest
    shape = largest and {"width": largest.width, "height": largest.height, "num_frames": largest.frames}
    return {
        "stage": error.stage.value,
        "needed_bytes": error.needed_bytes,
        "available_bytes": error.available_bytes,
        "largest_shape_that_fits": shape,
        "fits_with_exact_only_false": error.fits_approximately,
        "needed_bytes_with_strategy_auto": error.needed_bytes_unforced,
    }


def problem_of_validation(error: ValidationError) -> Problem:
    """Return the problem of an invalid job: the code of its first fault, and a list of all faults."""
    faults = [
        {
            "field": ".".join(map(str, item["loc"])) or None,
            "code": _fault_code(item["type"], item["loc"]),
            "message": item["msg"],
        }
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    first = faults[0]
    detail = f"{first['field']}: {first['message']}" if first["field"] else str(first["message"])
    return Problem(422, str(first["code"]), detail, data={"errors": faults})


_OWN_CODES = frozenset(
    {"approximate_not_allowed", "too_many_loras", "lora_scale_out_of_range", "too_many_keyframes"}
)


def _fault_code(kind: str, location: tuple[int | str, ...]) -> str:
    field = str(location[0]) if location else "request"
    if kind in _OWN_CODES:
        return kind
    if kind == "extra_forbidden":
        return "unknown_field"
    return "missing_field" if kind == "missing" else f"invalid_{field}"


def answer_to(scope: Scope, problem: Problem) -> Response:
    """Return the problem document, or an error in OpenAI's form for paths under /v1/."""
    path: str = scope["path"]
    if not path.removeprefix(scope.get("root_path", "")).startswith("/v1/"):
        return problem.response()
    kind = "server_error" if problem.status >= 500 else "invalid_request_error"
    error = {"message": problem.detail, "type": kind, "code": problem.code, "param": None, **problem.data}
    return _json({"error": error}, problem, "application/json")


def _answer(request: Request, problem: Problem) -> Response:
    return answer_to(request.scope, problem)


def install(app: FastAPI) -> None:
    """Install handlers that turn every error of the app into a problem document."""

    def ours(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if problem is None:
            raise error
        if isinstance(error, StoreUnavailable):
            log.warning("store_unavailable reason=%s", error)
        if isinstance(error, QueueFull):
            wait = request.app.state.service.waiting_times.retry_after_seconds(error)
            problem.headers["Retry-After"] = str(wait)
        return _answer(request, problem)

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
        return _answer(request, Problem(error.status_code, code, str(error.detail), headers=error.headers))

    def parameters(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where, name = str(first["loc"][0]), ".".join(map(str, first["loc"][1:]))
        return _answer(request, Problem(422, f"invalid_{where}_parameter", f"{name}: {first['msg']}"))

    async def hung_up(request: Request, _error: Exception) -> Response:
        # Nobody reads the answer. Its status is the one that nginx made usual for this.
        log.info("client_hung_up method=%s path=%s", request.method, request.scope["path"])
        return Response(status_code=499)

    def unexpected(request: Request, _error: Exception) -> Response:
        # Starlette raises the error again after sending this response, and the server logs it.
        detail = "the request failed unexpectedly: the service's log has the error"
        return _answer(request, Problem(500, "internal_error", detail))

    for kind in (
        Problem,
        NoSuchJob,
        JobDeleted,
        ResultExpired,
        ImageMissing,
        WrongState,
        IdempotencyConflict,
        QueueFull,
        StoreUnavailable,
        ImageRejected,
        WebhookRefused,
        ProfilePending,
        ModelUnavailable,
        LoraRefused,
        UnsupportedVae,
        FitsNowhere,
        ValidationError,
    ):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(ClientDisconnect, hung_up)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, parameters)
    app.add_exception_handler(Exception, unexpected)
