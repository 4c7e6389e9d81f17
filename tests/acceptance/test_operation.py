"""What operators rely on: the log of every process, its level, and an end in good order."""

import json
import signal
from contextlib import closing
from typing import Any

import pytest
from running_service import RunningService, StartService
from waiting import wait_for

from app.jobs import Job, JobStatus
from app.store import open_store

SMALL = {"width": 128, "height": 128, "num_frames": 97}
LONG = {"width": 256, "height": 256, "num_frames": 257}  # seconds of decoding on any machine


def events(service: RunningService, **wanted: Any) -> list[dict[str, Any]]:
    """The log's events with these fields; lines that are no JSON, as a library's progress bar, are none."""
    found = []
    for line in service.log_path.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            event = json.loads(line)
            if wanted.items() <= event.items():
                found.append(event)
    return found


def stored(service: RunningService, job_id: str) -> Job:
    """The job as the table has it, with no service running."""
    with closing(open_store(service.settings)) as store:
        return store.get(job_id)


@pytest.mark.slow
def test_the_log_follows_a_job_by_its_ids_and_sigterm_gives_it_back_with_its_steps(
    start_service: StartService,
) -> None:
    service = start_service(FRAMEFIT_LOG_FORMAT="json", FRAMEFIT_CHECKPOINT_SECONDS="0")
    service.http.headers["X-Request-Id"] = "order-17"
    # What the first job would wait for is done while nothing else is.
    wait_for(lambda: events(service, event="pipeline_imported", process="worker"), 120)
    running = service.submit(num_inference_steps=100, **LONG)["id"]
    waiting = service.submit(num_inference_steps=8, **SMALL)["id"]
    (accepted,) = events(service, event="job_accepted", job_id=running)
    assert (accepted["request_id"], accepted["process"], accepted["level"]) == ("order-17", "api", "info")
    assert not events(service, event="request_done")
    assert service.http.post("/log-level", params={"level": "debug"}).json() == {"level": "debug"}
    for process in ("api", "worker", "serve"):
        wait_for(lambda p=process: events(service, event="log_level_changed", process=p), 60)
    service.http.get("/models")
    wait_for(lambda: events(service, event="request_done", path="/models", status=200), 120)
    wait_for(lambda: "checkpoint" in service.kinds(running), 240, service.log)
    service.stop(signal.SIGTERM)
    (ended,) = events(service, event="job_ended", job_id=running)
    assert (ended["process"], ended["outcome"], bool(ended["worker_id"])) == ("worker", "released", True)
    assert (stored(service, running).status, stored(service, running).attempts) == (JobStatus.QUEUED, 0)
    assert service.kinds(running)[-2:] == ["checkpoint", "requeued"]
    assert (stored(service, waiting).status, stored(service, waiting).attempts) == (JobStatus.QUEUED, 0)


@pytest.mark.slow
def test_a_job_that_outlasts_the_drain_goes_back_to_the_queue_with_its_latents(
    start_service: StartService,
) -> None:
    service = start_service(FRAMEFIT_DRAIN_SECONDS="0.1")
    job_id = service.submit(num_inference_steps=1, decode_strategy="per_frame", **LONG)["id"]
    service.wait_until(job_id, lambda job: bool(job["stage"] == "decoding"))
    service.stop(signal.SIGTERM)
    job = stored(service, job_id)
    assert (job.status, service.kinds(job_id)[-1]) == (JobStatus.QUEUED, "requeued")
    assert job.latents_path is not None
    assert (service.data_dir / job.latents_path).exists()
