"""A job's video is seen while it forms: pictures of the clean estimate, without a decode."""

import io
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from served_model import ServedModel, served_model

from app.pipelines.builtin import MODEL_FOLDER
from app.store import open_store
from app.worker.denoise import pixel_maps
from app.worker.denoise.strips import SIDE, Strips
from app.worker.job import run as job_run
from app.worker.job.finishing_early import FinishingEarly
from app.worker.loop import Worker

PHOTO = pixel_maps.PHOTOGRAPH
STEPS = 3
FORMING = [0, 8, 2, 4, 6]  # of nine latent frames, in the order of their numbers


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedModel]:
    """The built-in model, with a strip of each step."""
    monkeypatch.setattr(job_run, "Strips", partial(Strips, every_seconds=0.0))
    with served_model(tmp_path / "data", MODEL_FOLDER) as running:
        yield running


def submitted(served: ServedModel, **more: Any) -> str:
    fields = {
        "width": 128,
        "height": 128,
        "num_frames": 9,
        "num_inference_steps": STEPS,
        "prompt": "pan left",
    }
    answer = served.http.post(
        "/generate",
        data={"model": "photo-pan", **fields, **more},
        files={"image": ("cat.jpg", PHOTO.read_bytes())},
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def run_next(served: ServedModel) -> None:
    with closing(open_store(served.settings)) as store:
        claim = store.claim("here", models=["photo-pan"], loaded_model=None, lease_seconds=600)
        assert claim is not None
        Worker(served.settings, served.models, store, served.engine, "here")._run_job(claim)


def test_each_step_shows_the_frames_that_form_and_the_decode_needs_no_previews_of_its_own(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submitted(served)
    shown: list[tuple[list[str], list[Image.Image]]] = []
    step_done = Strips.step_done

    def looked(strips: Strips, step: int, total: int) -> None:
        step_done(strips, step, total)
        assert strips._thread is not None
        strips._thread.join()
        links = served.job(job_id)["links"]["previews"]
        pictures = [Image.open(io.BytesIO(served.http.get(link).content)) for link in links]
        shown.append((links, pictures))

    monkeypatch.setattr(Strips, "step_done", looked)
    decodes: list[Any] = []
    monkeypatch.setattr("app.worker.decoding.make_previews", lambda *_: decodes.append(1) or [])
    run_next(served)
    job = served.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    events = served.events("preview")
    forming = [event for event in events if event["stage"] == "denoising"]
    assert [(event["step"], event["steps"]) for event in forming] == [(step, STEPS) for step in (1, 2, 3)]
    assert all(event["frames"] == FORMING for event in forming), forming
    assert [event["frame"] for event in events if event["stage"] == "decoding"] == FORMING, events
    assert not decodes, "nothing was decoded for them"
    for links, pictures in shown:
        assert len(links) == len(pictures) == len(FORMING)
        assert all(max(picture.size) <= SIDE for picture in pictures)
    assert correlation(shown[-1][1][1], frames_of(served, job_id, range(8, 9))) > 0.9


def frames_of(served: ServedModel, job_id: str, numbers: range) -> list[Image.Image]:
    import av

    with av.open(io.BytesIO(served.http.get(f"/jobs/{job_id}/video").content)) as video:
        return [frame.to_image() for frame in video.decode(video=0)][numbers.start : numbers.stop]


def correlation(picture: Image.Image, frames: list[Image.Image]) -> float:
    """Of a picture with the mean of the frames that its latent frame decodes to."""

    def small(image: Image.Image) -> Any:
        return np.asarray(image.convert("L").resize((16, 16)), np.float32).ravel()

    return float(np.corrcoef(small(picture), np.mean([small(frame) for frame in frames], axis=0))[0, 1])


def test_a_map_is_fitted_once_for_a_vae_and_read_after_that(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixel_maps._fitted.clear()
    fits: list[Any] = []
    fit = pixel_maps._fit
    monkeypatch.setattr(pixel_maps, "_fit", lambda vae: fits.append(1) or fit(vae))
    model = served.engine.load(served.models["photo-pan"], lambda *_: None)
    (stored,) = served.settings.profiles_dir.glob("pixels-*.json")
    first = model.pixel_map
    pixel_maps._fitted.clear()
    pixel_maps.prepare_pixel_map(model, served.settings)
    assert len(fits) == 1
    assert first is not None
    assert model.pixel_map is not None
    assert torch.equal(model.pixel_map.weights, first.weights)
    pixel_maps._fitted.clear()
    stored.write_text("{")
    pixel_maps.prepare_pixel_map(model, served.settings)
    assert len(fits) == 2, "a damaged file is replaced"
    with torch.no_grad():
        next(model.pipe.vae.parameters()).mul_(1.5)
    pixel_maps.prepare_pixel_map(model, served.settings)
    assert len(fits) == 3, "other weights, another map"


def test_a_scheduler_that_is_not_known_is_told_once_and_shows_nothing(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptive.denoise.preview.clean_estimate._FORMULAS", {})
    job_id = submitted(served)
    run_next(served)
    assert served.job(job_id)["status"] == "succeeded"
    (told,) = served.events("previews_unavailable")
    assert "FlowMatchEulerDiscreteScheduler" in told["reason"]
    assert not [event for event in served.events("preview") if event["stage"] == "denoising"]


def test_a_job_that_is_finished_early_keeps_the_video_as_far_as_it_is(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_run, "FinishingEarly", partial(FinishingEarly, ask_seconds=0.0))
    job_id = submitted(served, num_inference_steps=6)
    early = served.http.post(f"/jobs/{job_id}/finish-early")
    assert (early.status_code, early.json()["code"]) == (409, "wrong_state")
    step_done = Strips.step_done

    def asked(strips: Strips, step: int, total: int) -> None:
        step_done(strips, step, total)
        if step == 1:
            link = served.job(job_id)["links"]["finish_early"]
            assert served.http.post(link).status_code == 200

    monkeypatch.setattr(Strips, "step_done", asked)
    run_next(served)
    job = served.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    stopped = job["denoise"]["stopped_at_step"]
    assert stopped in (2, 3), "the step after the one in which it was seen"
    assert job["denoise"]["steps_computed"] == stopped
    assert job["denoise"]["steps"] == 6
    assert job["result"]["frames"] == 9
    assert "finish_early" not in job["links"]
    frames = frames_of(served, job_id, range(5, 9))
    shown = Image.open(io.BytesIO(served.http.get(job["links"]["previews"][1]).content))
    assert correlation(shown, frames) > 0.9, "a clean video, not one full of noise"
