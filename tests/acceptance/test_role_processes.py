"""A worker process that denoises and one that decodes share jobs; kill -9 of the second costs no step."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from role_workers import JOB_SECONDS, RoleWorkers
from waiting import wait_for

SHAPE = {
    "width": 128,
    "height": 128,
    "num_frames": 97,
    "num_inference_steps": 2,
    "decode_strategy": "per_frame",
}


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[RoleWorkers]:
    found = RoleWorkers(tmp_path / "data")
    yield found
    found.stop()


def test_jobs_are_denoised_by_one_process_and_decoded_by_another_that_is_killed(workers: RoleWorkers) -> None:
    quick = {"FRAMEFIT_CALIBRATE_SECONDS": "0"}
    workers.start("here/one/x", "denoise", **quick)
    workers.start("here/two/x", "decode", **quick)
    jobs = [workers.submit(**SHAPE, seed=seed) for seed in range(3)]

    def decodes() -> str | None:
        found = [job_id for job_id in jobs if workers.job(job_id).stage == "decoding"]
        return found[0] if found else None

    struck = wait_for(decodes, JOB_SECONDS, workers.log)
    workers.kill("here/two/x")
    workers.start("here/two/x", "decode", **quick)
    workers.wait_for_all(jobs)
    denoised = [event.job_id for event in workers.events("denoised")]
    assert sorted(denoised) == sorted(jobs), "nothing is denoised twice"
    assert workers.job(struck).attempts <= 2
    handed = workers.events("handed_over", struck)
    assert [(event.data["from"], event.data["to"]) for event in handed] == [("here/one/x", "here/two/x")]
    claims = {
        job_id: [each.data["worker_id"] for each in workers.events("claimed", job_id)] for job_id in jobs
    }
    assert {each[0] for each in claims.values()} == {"here/one/x"}
    assert claims[struck][1] == "here/two/x"
