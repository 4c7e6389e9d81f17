"""Nothing that was accepted is lost: processes are killed, and every job still ends with its video."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from running_service import RunningService, StartService, service_starter
from waiting import wait_for

from adaptive.pipelines.recorded_call import load_clip

# Long enough to be caught in each stage on a fast machine.
LARGE = {"width": 256, "height": 256, "num_frames": 97, "num_inference_steps": 30, "fps": 24}
SHORT = {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 1}
# Denoises for several heartbeats, for what must come before its end.
LONG = {**LARGE, "num_frames": 241, "num_inference_steps": 100}

ABORT_SWITCH = Path(__file__).with_name("abort_switch")
DEADLY = "a job that aborts its worker"

Moment = Callable[[dict[str, Any]], bool]


class Succession:
    """Services that follow each other on one data folder: what one leaves behind, the next must live with."""

    def __init__(self, start: StartService, **environ: str) -> None:
        self._start, self._environ = start, environ
        self.now = self.follow()

    def follow(self) -> RunningService:
        """The next one; the one before has ended."""
        self.now: RunningService = self._start(**self._environ)
        return self.now


@pytest.fixture(scope="module")
def services(built_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Succession]:
    """Jobs have two attempts. One of a certain prompt aborts its worker."""
    path = os.pathsep.join(filter(None, (str(ABORT_SWITCH), os.environ.get("PYTHONPATH"))))
    for start in service_starter(built_model, tmp_path_factory.mktemp("crashes") / "data"):
        yield Succession(
            start,
            FRAMEFIT_MAX_ATTEMPTS="2",
            FRAMEFIT_CHECKPOINT_SECONDS="0",
            PYTHONPATH=path,
            ABORT_PROMPT=DEADLY,
        )


def denoising(job: dict[str, Any]) -> bool:
    return bool(job["stage"] == "denoising" and job["progress"] > 0.1)


def decoding(job: dict[str, Any]) -> bool:
    return bool(job["stage"] == "decoding" and job["progress"] > 0.8)


def encoding(job: dict[str, Any]) -> bool:
    return bool(job["stage"] == "encoding")


CASES = [
    pytest.param(denoising, "auto", False, id="denoising"),
    pytest.param(decoding, "per_frame", True, id="decoding"),
    pytest.param(encoding, "batched", True, id="encoding"),
]


@pytest.mark.parametrize(("moment", "strategy", "latents_kept"), CASES)
def test_a_job_whose_worker_is_killed_still_succeeds_and_never_denoises_twice_for_nothing(
    services: Succession, moment: Moment, strategy: str, latents_kept: bool
) -> None:
    service = services.now
    job_id = service.submit(**LARGE, decode_strategy=strategy)["id"]
    service.wait_until(job_id, moment)
    killed = service.worker()
    killed.kill()
    service.finished(job_id)
    kinds = service.kinds(job_id)
    (requeued,) = [event for event in service.events(job_id) if event.kind == "requeued"]
    assert requeued.data["reason"] == "worker_killed"
    assert service.job(job_id)["attempts"] == 1, "a signal from outside costs no attempt"
    assert kinds.count("claimed") == 2
    assert kinds.count("denoised") == 1
    assert kinds.count("resumed_from_latents") == int(latents_kept)
    assert service.worker().pid != killed.pid
    assert service.http.get(f"/jobs/{job_id}/video").status_code == 200


def test_a_job_killed_in_its_denoise_goes_on_at_its_step_and_has_the_latents_of_one_left_alone(
    services: Succession,
) -> None:
    service, steps = services.now, 60
    asked = {"width": 128, "height": 128, "num_frames": 97, "seed": 7, "num_inference_steps": steps}
    whole, killed = (service.submit(**asked)["id"] for _ in range(2))
    service.finished(whole)
    service.wait_until(killed, denoising)
    service.worker().kill()
    job = service.finished(killed)
    events = service.events(killed)
    (resumed,) = [event.data["step"] for event in events if event.kind == "resumed"]
    # By the last checkpoint that the table knows; one that was written just before the kill is one further.
    before = events[: [event.kind for event in events].index("requeued")]
    (*_, known) = [event.data["step"] for event in before if event.kind == "checkpoint"]
    assert resumed in (known, known + 1)
    assert job["denoise"]["resumed_from_step"] == resumed
    assert job["denoise"]["steps_computed"] == steps - resumed
    assert torch.equal(*(latents_of(service, job_id) for job_id in (whole, killed)))


def latents_of(service: RunningService, job_id: str) -> torch.Tensor:
    (call,) = load_clip(service.settings.jobs_dir / job_id / "latents.safetensors").calls
    return call.latents


@pytest.mark.parametrize(("moment", "strategy", "latents_kept"), CASES[:2])
def test_every_accepted_job_succeeds_after_the_whole_service_was_killed_and_no_process_is_left(
    services: Succession, moment: Moment, strategy: str, latents_kept: bool
) -> None:
    first = services.now
    running = first.submit(**LARGE, decode_strategy=strategy)["id"]
    waiting = [first.submit(**SHORT)["id"] for _ in range(3)]
    first.wait_until(running, moment)
    first.kill()
    second = services.follow()
    for job_id in (running, *waiting):
        second.finished(job_id)
    assert second.kinds(running).count("denoised") == 1
    assert second.kinds(running).count("resumed_from_latents") == int(latents_kept)


def test_a_stopped_service_gives_the_running_job_back_and_leaves_no_process(services: Succession) -> None:
    first = services.now
    job_id = first.submit(**LONG)["id"]
    first.wait_until(job_id, denoising)
    everyone = first.processes()
    first.stop()
    assert not [p for p in everyone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    second = services.follow()
    assert second.job(job_id)["status"] in ("queued", "running")
    assert "requeued" in second.kinds(job_id)
    second.http.delete(f"/jobs/{job_id}").raise_for_status()
    second.finished(job_id, "canceled")


def test_a_running_job_is_canceled_within_a_step(services: Succession) -> None:
    service = services.now
    job_id = service.submit(**LONG)["id"]
    service.wait_until(job_id, denoising)
    service.http.delete(f"/jobs/{job_id}").raise_for_status()
    service.finished(job_id, "canceled")
    # A heartbeat tells the worker, and the step at hand is finished first, not all steps.
    assert "denoised" not in service.kinds(job_id)
    assert service.kinds(job_id)[-2:] == ["canceled", "finished"]
    assert service.finished(service.submit(**SHORT)["id"])


def test_a_job_that_is_deleted_while_it_runs_leaves_no_byte_on_the_disk(services: Succession) -> None:
    service = services.now
    picture, photo = io.BytesIO(), Image.effect_noise((256, 192), 60)
    photo.save(picture, "PNG")
    prompt = "m4rk3r of a deleted prompt"
    marked = [prompt.encode(), picture.getvalue()[5000:5100]]

    def left() -> list[str]:
        files = [path for path in service.data_dir.rglob("*") if path.is_file()]
        return [path.name for path in files if any(one in _content(path) for one in marked)]

    job_id = service.submit({"image": picture.getvalue()}, prompt=prompt, **LONG)["id"]
    service.wait_until(job_id, denoising)
    assert left()
    assert service.http.delete(f"/v1/videos/{job_id}").json()["deleted"]
    for path in ("", "/image", "/events", "/video"):
        gone = service.http.get(f"/jobs/{job_id}{path}")
        assert (gone.status_code, gone.json()["code"]) == (410, "job_deleted")
    wait_for(lambda: not left() or None, 120, service.log, every=0.5)
    wait_for(lambda: service.http.get(f"/jobs/{job_id}").json()["erased"] or None, 120, service.log)
    assert not (service.data_dir / "jobs" / job_id).exists()
    assert service.finished(service.submit(**SHORT)["id"]), "the worker goes on"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # it was being deleted
        return b""


def test_a_job_that_aborts_its_worker_every_time_is_held_tried_alone_and_given_up_after_the_others(
    services: Succession,
) -> None:
    service = services.now
    deadly = service.submit(prompt=DEADLY, **SHORT)["id"]
    others = [service.submit(**SHORT)["id"] for _ in range(3)]
    held = service.wait_until(deadly, lambda job: bool(job["stage"] == "held"))
    assert (held["status"], held["attempts"]) == ("queued", 2)
    assert "its worker process died 2 times" in held["held_because"]
    job = service.finished(deadly, "failed")
    assert job["error"]["code"] == "too_many_attempts"
    assert all(service.job(other)["status"] == "succeeded" for other in others)
    last_try = [event.at for event in service.events(deadly) if event.kind == "claimed"][-1]
    ends = [event.at for other in others for event in service.events(other) if event.kind == "finished"]
    assert max(ends) < last_try
    assert service.kinds(deadly).count("claimed") == 3
    wait_for(lambda: service.metric("framefit_jobs_held_total") == 1, 60)
    assert "retry" in job["links"]
