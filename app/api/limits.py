"""Decides whether work is taken: one function for new jobs, batches, remixes, retries and redecodes.

The limits of the queue are checked by the store, in the transaction that queues the job
(`app.store.queue_limits`).
"""

import shutil
from dataclasses import dataclass

from app.api.dependencies import Service
from app.api.problems import Problem
from app.jobs import JobSpec
from app.models.downloads.planning import DownloadFailed
from app.models.entries import ModelEntry
from app.scheduling.admission import Verdict

RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Admitted:
    """Work that is taken if the queue has room: its plan, and the limit of queued jobs of its owner's key."""

    verdict: Verdict
    max_queued_of_owner: int | None


def admit(service: Service, owner: str | None, spec: JobSpec) -> Admitted:
    """Admit work of `owner`, the key whose job it is.

    Raises `Problem` 409 `model_gone`, 422 `over_key_limit` or 507 `disk_full`, and `ModelUnavailable` for a
    model that the hub refuses; otherwise as `Admission.admit`.
    """
    if spec.model not in service.models:
        raise Problem(409, "model_gone", f"model {spec.model} is no longer available")
    check_key_limits(service, owner, spec)
    check_disk(service)
    _check_hub(service, service.models[spec.model])
    key = service.keys.of_owner(owner)
    return Admitted(service.admission.admit(spec), None if key is None else key.max_queued)


def _check_hub(service: Service, entry: ModelEntry) -> None:
    """Ask the hub for a model that is still to be downloaded, if nothing is known of it.

    Raises `ModelUnavailable` if it refuses the model, and problem 507 if the disk is too small for it.
    """
    try:
        if service.hub.check(entry):
            service.faults.forget(entry)
    except DownloadFailed as refusal:
        service.faults.forget(entry)
        if refusal.code != "disk_full":
            raise
        raise Problem(507, "disk_full", str(refusal), data=dict(refusal.data)) from refusal


def check_key_limits(service: Service, owner: str | None, spec: JobSpec) -> None:
    """Raise problem 422 if the video is larger than the owner's key allows."""
    key = service.keys.of_owner(owner)
    asked = spec.width * spec.height * spec.num_frames
    if key is not None and key.max_pixels is not None and asked > key.max_pixels:
        message = (
            f"width x height x num_frames is {asked:,}; key {key.name} may ask for at most {key.max_pixels:,}"
        )
        raise Problem(422, "over_key_limit", message, data={"pixels": asked, "limit": key.max_pixels})


def check_disk(service: Service) -> None:
    """Raise problem 507 if the data folder's disk has too little space for another job's files."""
    wanted = service.settings.min_free_disk_bytes
    if not wanted:
        return
    try:
        free = shutil.disk_usage(service.settings.data_dir).free
    except OSError:
        return  # the folder is missing: storing the job fails, and says so
    if free < wanted:
        message = f"the service's disk has {free:,} bytes free and takes work from {wanted:,} on: try later"
        retry = {"Retry-After": str(RETRY_SECONDS)}
        raise Problem(507, "disk_full", message, headers=retry, data={"free_bytes": free, "limit": wanted})
