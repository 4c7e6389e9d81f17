"""What operators rely on: the log of every process, its level, and an end in good order."""

import json
import signal
from typing import Any

import pytest
from running_service import RunningService, StartService, wait_for

SMALL = {"width": 128, "height": 128, "num_frames": 97}


def events(service: RunningService, **wanted: Any) -> list[dict[str, Any]]:
    """The log's events with these fields; lines that are no JSON, as a library's progress bar, are none."""
    found = []
    for line in service.log_path.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            event = json.loads(line)
            if wanted.items() <= event.items():
                found.append(event)
    return found


@pytest.mark.slow
def test_the_log_tells_a_job_by_its_ids_and_its_level_follows_the_operator(
    start_service: StartService,
) -> None:
    service = start_service(FRAMEFIT_LOG_FORMAT="json")
    service.http.headers["X-Request-Id"] = "order-17"
    job_id = service.submit(num_inference_steps=1, **{**SMALL, "num_frames": 9})["id"]
    service.finished(job_id)
    (accepted,) = events(service, event="job_accepted", job_id=job_id)
    assert (accepted["request_id"], accepted["process"], accepted["level"]) == ("order-17", "api", "info")
    (ended,) = wait_for(lambda: events(service, event="job_ended", job_id=job_id) or None, 20)
    assert (ended["process"], ended["outcome"], bool(ended["worker_id"])) == ("worker", "succeeded", True)
    assert not events(service, event="request_done")
    assert service.http.post("/log-level", params={"level": "debug"}).json() == {"level": "debug"}
    for process in ("api", "worker", "serve"):
        wait_for(lambda p=process: events(service, event="log_level_changed", process=p) or None, 20)
    service.http.get("/jobs")
    wait_for(lambda: events(service, event="request_done", path="/jobs", status=200) or None, 20)


@pytest.mark.slow
def test_sigterm_lets_the_running_job_end_or_keeps_its_latents_when_time_is_up(
    start_service: StartService,
) -> None:
    first = start_service()
    running = first.submit(num_inference_steps=8, **SMALL)["id"]
    waiting = first.submit(num_inference_steps=1, decode_strategy="per_frame", **SMALL)["id"]
    first.wait_until(running, lambda job: bool(job["stage"] == "denoising"))
    first.stop(signal.SIGTERM)
    second = start_service(FRAMEFIT_DRAIN_SECONDS="0.1")
    ended = second.job(running)
    assert (ended["status"], ended["attempts"]) == ("succeeded", 1)
    assert "requeued" not in second.kinds(running)
    second.wait_until(waiting, lambda job: bool(job["stage"] == "decoding" and job["progress"] > 0.7))
    second.stop(signal.SIGTERM)
    third = start_service()
    third.finished(waiting)
    kinds = third.kinds(waiting)
    assert (kinds.count("denoised"), kinds.count("resumed_from_latents")) == (1, 1)
