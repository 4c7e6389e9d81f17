"""A job that went back to the queue shows no progress of its earlier attempt."""

from collections.abc import Callable

from app.jobs import JobSpec, JobStatus, Stage
from app.store import JobStore


def test_a_requeued_job_starts_at_zero(store: JobStore, make_spec: Callable[..., JobSpec]) -> None:
    job = store.add(make_spec(), b"x")
    claim = store.claim("w")
    assert claim is not None
    assert store.progress(job.id, claim.token, stage=Stage.DENOISING, progress=0.7)
    assert store.forget_worker("w") == [job.id]
    again = store.get(job.id)
    assert (again.status, again.stage, again.progress) == (JobStatus.QUEUED, Stage.QUEUED, 0.0)
