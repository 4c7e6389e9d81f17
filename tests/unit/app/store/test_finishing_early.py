"""A running job is asked to finish early while it is denoised; a later run of it is not."""

from collections.abc import Callable

import pytest

from app.jobs import JobSpec, JobStatus, Stage
from app.store import JobStore, WrongState


def test_only_a_job_that_is_denoised_is_finished_early_and_only_this_time(
    store: JobStore, make_spec: Callable[..., JobSpec]
) -> None:
    job = store.add(make_spec(), b"x")
    with pytest.raises(WrongState, match="finished early"):
        store.finish_early(job.id)
    claim = store.claim("w")
    assert claim is not None
    with pytest.raises(WrongState):
        store.finish_early(job.id)
    assert store.progress(job.id, claim.token, stage=Stage.DENOISING, progress=0.1, kind="stage")
    assert not store.is_finish_early_requested(job.id)
    assert store.finish_early(job.id).status is JobStatus.RUNNING
    assert store.is_finish_early_requested(job.id)
    assert store.release(job.id, claim.token, "worker_crashed")
    again = store.claim("w")
    assert again is not None
    assert store.is_finish_early_requested(job.id), "a crash does not forget it"
    assert store.finish(job.id, again.token, status=JobStatus.CANCELED)
    with pytest.raises(WrongState):
        store.finish_early(job.id)
    store.queue_again(job.id, why="retry")
    assert store.claim("w") is not None
    assert not store.is_finish_early_requested(job.id), "what is queued again runs in full"
