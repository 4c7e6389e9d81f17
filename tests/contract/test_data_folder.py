"""A data folder of an earlier version opens: its jobs are as they were, and the others finish."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from public_interface import ANSWERS, answers, differences
from served_folder import ServedFolder

HERE = Path(__file__).parent
NOT_COMPARED = {"notice"}  # the model's wording, not the job's


class Opened:
    """A committed folder, copied, with a service of this checkout running on it."""

    def __init__(self, made: Path, service: ServedFolder) -> None:
        told = json.loads((made / "answers.json").read_text())
        self.service = service
        self.files = made / "files"
        self.answers: dict[str, Any] = told["answers"]
        self.queued: list[str] = told["queued"]
        self.denoised: str = told["denoised"]
        self.request: dict[str, Any] = told["request"]

    def id_of(self, state: str) -> str:
        job_id: str = self.answers[state]["job"]["id"]
        return job_id


@pytest.fixture(scope="module", params=sorted(path.name for path in HERE.glob("data_folder_*")))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    made = HERE / request.param
    folder = Path(shutil.copytree(made / "files", tmp_path_factory.mktemp("opened") / "data"))
    # The folder gets older, and its events are to be compared.
    with ServedFolder(folder, FRAMEFIT_EVENT_TTL_SECONDS="inf") as service:
        yield Opened(made, service)


def kept(before: Any, now: Any) -> Any:
    """What is there now of the keys that were there before."""
    if isinstance(before, dict) and isinstance(now, dict):
        return {
            name: kept(value, now.get(name)) for name, value in before.items() if name not in NOT_COMPARED
        }
    return now


@pytest.mark.parametrize("state", ["finished", "failed", "canceled"])
def test_a_job_that_ended_is_shown_as_it_was(opened: Opened, state: str) -> None:
    before = opened.answers[state]
    now = opened.service.job(opened.id_of(state))
    assert kept(before["job"], now) == kept(before["job"], before["job"])
    assert opened.service.kinds(opened.id_of(state)) == before["kinds"]


def test_a_finished_job_still_serves_its_files(opened: Opened) -> None:
    job_id = opened.id_of("finished")
    for name, file in (("video", "video.mp4"), ("thumbnail", "thumbnail.jpg")):
        answer = opened.service.http.get(f"/jobs/{job_id}/{name}").raise_for_status()
        assert answer.content == (opened.files / "jobs" / job_id / file).read_bytes()


def test_a_request_that_is_repeated_under_its_key_gets_the_job_of_the_earlier_version(opened: Opened) -> None:
    job_id = opened.id_of("finished")
    image = opened.service.http.get(f"/jobs/{job_id}/image").raise_for_status().content
    assert opened.service.submit(image, "a request that is repeated", **opened.request)["id"] == job_id


def test_a_job_whose_latents_are_there_is_decoded_and_not_denoised_again(opened: Opened) -> None:
    job = opened.service.ended(opened.denoised)
    kinds = opened.service.kinds(opened.denoised)
    assert job["result"]["frames"] == job["request"]["num_frames"]
    assert kinds.count("denoised") == 1
    assert kinds.count("resumed_from_latents") == 1
    assert opened.service.http.get(f"/jobs/{opened.denoised}/video").status_code == 200


def test_queued_jobs_finish(opened: Opened) -> None:
    assert opened.queued
    for job_id in opened.queued:
        opened.service.ended(job_id)
        assert opened.service.http.get(f"/jobs/{job_id}/video").status_code == 200


def test_a_finished_job_is_decoded_again_from_its_latents(opened: Opened) -> None:
    job_id = opened.id_of("finished")
    changes = {"decode_strategy": "per_frame"}
    opened.service.http.post(f"/jobs/{job_id}/redecode", json=changes).raise_for_status()
    job = opened.service.ended(job_id)
    assert job["decode"]["strategy"] == "per_frame"
    assert job["result"]["frames"] == opened.request["num_frames"]
    assert opened.service.kinds(job_id).count("denoised") == 1


@pytest.mark.parametrize("state", ["failed", "canceled"])
def test_a_job_that_did_not_succeed_can_be_retried(opened: Opened, state: str) -> None:
    job_id = opened.id_of(state)
    opened.service.http.post(f"/jobs/{job_id}/retry").raise_for_status()
    assert opened.service.ended(job_id)["result"]


def test_answers_have_the_keys_of_the_snapshot(opened: Opened) -> None:
    told = differences(ANSWERS, answers(opened.service))
    assert not told, told
