"""Digests of requests: those that are repeated under one idempotency key must have equal ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from app.api.problems import Problem
from app.api.requests.job_spec import asks_for_random_seed, job_spec
from app.jobs import MEASURED, JobSpec
from app.models.entries import ModelEntry
from app.models.former import former_entry
from app.store import Submission


def request_fingerprint(
    spec: JobSpec,
    fields: Mapping[str, Any],
    image: bytes,
    last_image: bytes | None = None,
    keyframes: Sequence[bytes] = (),
) -> str:
    """Return the digest of a request's specification and images."""
    # A random seed is not part of the client's request.
    requested = spec.model_copy(update={"seed": 0}) if asks_for_random_seed(fields) else spec
    return requested.fingerprint(image, last_image, keyframes)


def former_fingerprint(
    models: Mapping[str, ModelEntry], fields: Mapping[str, Any], submission: Submission
) -> str | None:
    """Return the digest of the request with the defaults that its model had before; None if it had none.

    A request that is repeated after an upgrade is still the same one.
    """
    name = submission.spec.model
    former = former_entry(models[name])
    if former is None:
        return None
    has_last_image = submission.last_image is not None
    try:
        spec = job_spec({**fields, "model": name}, {name: former}, has_last_image=has_last_image)
    except (Problem, ValidationError):
        return None
    measured = submission.spec.model_dump(include=set(MEASURED))
    spec = spec.model_copy(update=measured)
    return request_fingerprint(spec, fields, submission.image, submission.last_image, submission.keyframes)
