"""POST /generate/batch: several jobs in one request. Either all are queued or none."""

import hashlib
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from app.api.access import Caller
from app.api.dependencies import Prefix, Service, TheService
from app.api.problems import Problem, documented, problem_of
from app.api.requests.bodies import Parts, parse_batch_body
from app.api.requests.schemas import BATCH_BODY, MAX_JOBS
from app.api.response_schemas import JOBS, answer
from app.api.routes.submit import Body, IdempotencyKey, build_submission, tell_accepted, view
from app.jobs import Json
from app.store import Submission

router = APIRouter()


@router.post(
    "/generate/batch",
    status_code=202,
    tags=["jobs"],
    summary="Queue several videos at once",
    responses={**answer(JOBS, 202), **documented(400, 401, 404, 408, 409, 410, 413, 415, 422, 429, 503, 507)},
    openapi_extra=BATCH_BODY,
)
def generate_batch(
    request: Request,
    service: TheService,
    owner: Caller,
    prefix: Prefix,
    body: Body,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Queue up to 32 jobs together and in order, each with the fields of POST /generate.

    If one job is refused, none is queued; `errors` holds the problem of each refused job.
    """
    jobs = parse_batch_body(request.headers.get("content-type", ""), body)
    if not 1 <= len(jobs) <= MAX_JOBS:
        raise Problem(422, "bad_batch_size", f"a batch must have 1 to {MAX_JOBS} jobs, not {len(jobs)}")
    submissions = _build_submissions(service, jobs, owner, idempotency_key)
    added = service.store.submit_all(submissions)
    for job, created in added:
        if created:
            tell_accepted(service, job)
    return {"jobs": [view(service, job, owner, prefix) for job, _ in added]}


def _build_submissions(
    service: Service, jobs: list[Parts], owner: str | None, idempotency_key: str | None
) -> list[Submission]:
    submissions, problems = [], {}
    for index, parts in enumerate(jobs):
        key = None if idempotency_key is None else f"{idempotency_key}#{index}"
        try:
            submissions.append(build_submission(service, parts, owner=owner, idempotency_key=key))
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                raise
            problems[index] = problem
    if problems:
        raise _refusal(problems, len(jobs))
    # An idempotency key stands for the whole batch: the same job in another batch is a different request.
    together = hashlib.sha256("".join(each.fingerprint for each in submissions).encode()).hexdigest()
    return [replace(each, fingerprint=f"{together}-{each.fingerprint}") for each in submissions]


def _refusal(problems: dict[int, Problem], jobs: int) -> Problem:
    errors: list[dict[str, Any]] = [
        {"index": index, "status": each.status, "code": each.code, "detail": each.detail, **each.data}
        for index, each in problems.items()
    ]
    first = min(problems)
    detail = (
        f"{len(errors)} of {jobs} jobs were refused, so none is queued; job {first}: {problems[first].detail}"
    )
    only_busy = all(each.status == 503 for each in problems.values())
    headers = problems[first].headers if only_busy else {}
    return Problem(
        503 if only_busy else 422, "batch_refused", detail, headers=headers, data={"errors": errors}
    )
