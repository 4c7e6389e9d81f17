"""A long job gives way to an urgent one and then goes on: real processes, with the built-in model."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from running_service import RunningService, StartService
from waiting import wait_for

from adaptive.pipelines.recorded_call import load_clip
from app.artifacts.local_folder import job_artifacts

STEPS = 100
LONG = {"width": 64, "height": 64, "num_frames": 25, "num_inference_steps": STEPS, "fps": 24, "seed": 3}
FORCED = {"decode_strategy": "per_frame"}
SMALL = {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2}


def frames(service: RunningService, job_id: str, folder: Path) -> list[np.ndarray]:
    path = folder / f"{job_id}.mp4"
    path.write_bytes(service.http.get(f"/jobs/{job_id}/video").raise_for_status().content)
    with av.open(path) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def latents(service: RunningService, job_id: str) -> torch.Tensor:
    return load_clip(job_artifacts(service.settings.jobs_dir, job_id).latents).calls[0].latents


@pytest.mark.slow
def test_an_urgent_job_ends_first_and_the_long_one_has_the_frames_of_an_undisturbed_one(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service(FRAMEFIT_PREEMPT_AFTER_SECONDS="0.001")
    low = service.submit(**LONG, **FORCED)["id"]
    service.wait_until(low, lambda job: bool(job["status"] == "running"))
    high = service.submit(**SMALL, priority=5)["id"]  # the worker still loads the model
    job = service.finished(low)
    assert service.finished(high)["finished_at"] < job["finished_at"]
    (preempted,) = (event for event in service.events(low) if event.kind == "preempted")
    assert (job["preemptions"], job["attempts"]) == (1, 1)
    assert 0 < preempted.data["step"] < STEPS
    assert job["denoise"]["resumed_from_step"] == preempted.data["step"]
    undisturbed = service.submit(**LONG, **FORCED)["id"]
    service.finished(undisturbed)
    assert torch.equal(latents(service, low), latents(service, undisturbed))
    for one, other in zip(*(frames(service, each, tmp_path) for each in (low, undisturbed)), strict=True):
        assert np.array_equal(one, other)
    computed = 2 * STEPS + SMALL["num_inference_steps"]  # none of them twice
    wait_for(lambda: service.counted("framefit_denoise_steps_total", how="computed") == computed, 60)
    assert service.counted("framefit_preemptions_total", model="tiny") == 1
