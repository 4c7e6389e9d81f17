"""Any frame as the VAE decodes it: the stored latents are decoded again, by the limits of all work."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from numpy.typing import NDArray
from PIL import Image
from served_model import ServedModel, served_model

import adaptive
from adaptive.pipelines.recorded_call import load_clip
from app.artifacts import local_folder
from app.artifacts.local_folder import JobArtifacts, TooManyFramesAsked, job_artifacts
from app.worker.frame_transfer import to_pixels
from app.worker.job import run

LTX = "LTXImageToVideoPipeline"
FRAMES = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.save(LTX, tmp_path_factory.mktemp("ltx") / "model")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[ServedModel]:
    with served_model(tmp_path_factory.mktemp("data"), folder, max_queued=1) as service:
        yield service


def finished(served: ServedModel, **fields: Any) -> tuple[str, JobArtifacts]:
    job_id = served.submit(decode_strategy="batched", **fields)
    served.run_next()
    assert served.job(job_id)["status"] == "succeeded"
    return job_id, job_artifacts(served.settings.jobs_dir, job_id)


def decoded(served: ServedModel, files: JobArtifacts) -> NDArray[np.uint8]:
    """The frames of the decode itself, as bytes."""
    (call,) = load_clip(files.latents).calls
    vae = served.engine.load(served.models["mine"], lambda *_: None).pipe.vae
    with torch.no_grad():
        frames = adaptive.decode(vae, call.latents, strategy="batched", **call.kwargs)
    pixels: NDArray[np.uint8] = to_pixels(frames[0]).numpy()
    return pixels


def shown(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_an_exact_frame_is_the_decodes_own_bit_for_bit(served: ServedModel) -> None:
    job_id, files = finished(served)
    expected, url = decoded(served, files), f"/jobs/{job_id}/frames"
    for number, name in ((0, "first"), (FRAMES - 1, "last"), (-1, "last"), (-FRAMES, "first")):
        at_once = served.http.get(f"{url}/{number}.png?exact=1")
        assert at_once.status_code == 200
        assert at_once.content == served.http.get(f"{url}/{name}.png").content
    for number in (3, -2):
        queued = served.http.get(f"{url}/{number}.png?exact=1")
        assert (queued.status_code, queued.json()["status"]) == (202, "queued")
        assert queued.headers["retry-after"]
        assert served.http.get(f"{url}/{number}.png?exact=1").status_code == 202, "it waits still"
        served.run_next()
    for number in (3, -2):
        answer = served.http.get(f"{url}/{number}.png?exact=1")
        assert (answer.status_code, answer.headers["framefit-pixels"]) == (200, "decoded")
        assert (shown(answer.content) == expected[number]).all()
        lossy = served.http.get(f"{url}/{number}.png")
        assert lossy.headers["framefit-pixels"] == "lossy"
        assert (shown(lossy.content) != expected[number]).any()
    assert served.job(job_id)["status"] == "succeeded"
    resumed = [event for event in served.events("resumed_from_latents") if job_id in event["path"]]
    assert len(resumed) == 2, "it was not denoised again"
    assert served.http.get(f"{url}/{FRAMES}.png?exact=1").json()["frames"] == FRAMES


def test_frames_asked_for_while_the_job_waits_come_of_the_same_decode(served: ServedModel) -> None:
    job_id, files = finished(served)
    url = f"/jobs/{job_id}/frames"
    for number in (2, 5, 6):
        assert served.http.get(f"{url}/{number}.png?exact=1").status_code == 202
    served.run_next()
    expected = decoded(served, files)
    for number in (2, 5, 6):
        assert (shown(served.http.get(f"{url}/{number}.png?exact=1").content) == expected[number]).all()
    assert served.job(job_id)["attempts"] == 1
    served.http.post(f"/jobs/{job_id}/redecode", json={"decode_strategy": "per_frame"}).raise_for_status()
    assert served.http.get(f"{url}/5.png?exact=1").status_code == 200, (
        "it is of the video that is there still"
    )
    served.run_next()
    assert served.http.get(f"{url}/5.png?exact=1").status_code == 200


def test_what_was_made_of_the_old_video_during_a_decode_goes_with_it(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, files = finished(served)
    write = run.write_last_frame

    def while_converted(*given: Any) -> bool:
        files.converted("gif").write_bytes(b"of the old video")
        return write(*given)

    monkeypatch.setattr(run, "write_last_frame", while_converted)
    served.http.post(f"/jobs/{job_id}/redecode", json={"embed_metadata": False}).raise_for_status()
    served.run_next()
    assert served.job(job_id)["status"] == "succeeded"
    assert files.video.exists()
    assert not files.converted("gif").exists()


def test_without_latents_nothing_is_queued(served: ServedModel) -> None:
    job_id, files = finished(served)
    files.latents.unlink()
    refused = served.http.get(f"/jobs/{job_id}/frames/3.png?exact=1")
    assert (refused.status_code, refused.json()["code"]) == (409, "no_latents")
    assert served.http.get(f"/jobs/{job_id}/frames/3.png").status_code == 200
    assert (served.job(job_id)["status"], files.asked_frames()) == ("succeeded", frozenset())


def test_an_exact_frame_passes_the_limits_of_all_work_and_other_sites_cannot_ask(
    served: ServedModel,
) -> None:
    job_id, files = finished(served)
    url = f"/jobs/{job_id}/frames/3.png?exact=1"
    foreign = served.http.get(url, headers={"Sec-Fetch-Site": "cross-site"})
    assert (foreign.status_code, foreign.json()["code"]) == (403, "cross_site")
    other = served.submit()
    full = served.http.get(url)
    assert (full.status_code, full.json()["code"]) == (429, "queue_full")
    assert (served.job(job_id)["status"], files.asked_frames()) == ("succeeded", frozenset())
    served.http.delete(f"/jobs/{other}").raise_for_status()


def test_a_decode_that_failed_for_a_frame_is_told_and_not_begun_again_at_each_look(
    served: ServedModel,
) -> None:
    job_id, files = finished(served)
    url = f"/jobs/{job_id}/frames/3.png?exact=1"
    assert served.http.get(url).status_code == 202
    served.http.delete(f"/jobs/{job_id}").raise_for_status()
    refused = served.http.get(url)
    assert (refused.status_code, refused.json()["code"]) == (409, "exact_frame_failed")
    served.http.post(f"/jobs/{job_id}/retry").raise_for_status()
    served.run_next()
    assert (shown(served.http.get(url).content) == decoded(served, files)[3]).all()


def test_head_tells_that_a_frame_is_not_stored_and_queues_nothing(served: ServedModel) -> None:
    job_id, files = finished(served)
    url = f"/jobs/{job_id}/frames/3.png?exact=1"
    assert served.http.head(url).status_code == 202
    assert (served.job(job_id)["status"], files.asked_frames()) == ("succeeded", frozenset())
    served.http.get(url)
    served.run_next()
    assert served.http.head(url).status_code == 200
    assert served.http.head(f"/jobs/{job_id}/frames/{FRAMES}.png?exact=1").status_code == 404


def test_a_frame_that_is_written_is_served_while_the_job_waits_for_another_one(served: ServedModel) -> None:
    job_id, files = finished(served)
    url = f"/jobs/{job_id}/frames"
    served.http.get(f"{url}/2.png?exact=1")
    served.run_next()
    assert served.http.get(f"{url}/4.png?exact=1").json()["status"] == "queued"
    answer = served.http.get(f"{url}/2.png?exact=1")
    assert answer.status_code == 200
    served.run_next()
    assert (shown(answer.content) == decoded(served, files)[2]).all()


def test_a_frame_beyond_those_that_wait_for_a_decode_is_refused_until_it_has_ended(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_folder, "MOST_ASKED_FRAMES", 2)
    job_id, files = finished(served)
    url = f"/jobs/{job_id}/frames"
    asked = [served.http.get(f"{url}/{number}.png?exact=1") for number in (2, 3, 4)]
    assert [answer.status_code for answer in asked] == [202, 202, 409]
    assert (asked[2].json()["code"], asked[2].json()["limit"]) == ("too_many_frames", 2)
    assert asked[2].headers["retry-after"]
    served.run_next()
    assert files.asked_frames() == {2, 3}
    assert served.http.get(f"{url}/4.png?exact=1").status_code == 202
    for number in (2, 3):
        assert served.http.get(f"{url}/{number}.png?exact=1").status_code == 200
    served.run_next()
    assert served.http.get(f"{url}/4.png?exact=1").status_code == 200


def test_the_frames_that_are_asked_for_are_bounded_and_none_is_given_up_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_folder, "MOST_ASKED_FRAMES", 3)
    files = JobArtifacts(tmp_path)
    for number in range(3):
        assert files.ask_frame(number)
    with pytest.raises(TooManyFramesAsked):
        files.ask_frame(3)
    assert not files.ask_frame(2)
    for number in (1, 2):
        files.exact_frame(number).write_bytes(b"x")
    assert files.ask_frame(3)
    assert files.ask_frame(4)
    with pytest.raises(TooManyFramesAsked):
        files.ask_frame(5)
    assert files.asked_frames() == {0, 3, 4}
    assert files.exact_frame(1).exists(), "until the next decode begins"
