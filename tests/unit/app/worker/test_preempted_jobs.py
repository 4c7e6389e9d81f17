"""A job that denoises gives its device to one of higher priority, and loses neither a step nor a bit."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from hub_model import put_here
from huggingface_hub import constants
from scraped import total
from served_model import ServedModel, served_model

from adaptive.pipelines.recorded_call import load_clip
from app.artifacts.local_folder import job_artifacts
from app.store import open_store
from app.store.backfill import MOST_PREEMPTIONS
from app.worker.job import giving_way
from app.worker.job.giving_way import GivingWay
from app.worker.loop import Worker

LTX = "LTXImageToVideoPipeline"
STEPS = 10
OnLook = Callable[[str, int], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.save(LTX, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def served(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedModel]:
    monkeypatch.setattr(giving_way, "ASK_SECONDS", 0.0)
    options = {"checkpoint_seconds": 3600, "preempt_after_seconds": 1e-6}
    with served_model(tmp_path / "data", folder, **options) as running:
        yield running


def work(served: ServedModel) -> list[str]:
    """Run jobs until none is queued, as the worker's loop does; returns the ids of the attempts in turn."""
    attempts = []
    with closing(open_store(served.settings)) as store:
        worker = Worker(served.settings, served.models, store, served.engine, "here")
        while (claim := worker._claim()) is not None:
            while claim is not None:
                attempts.append(claim.job.id)
                claim = worker._run_job(claim)
    return attempts


def at_each_look(monkeypatch: pytest.MonkeyPatch, on_look: OnLook) -> None:
    """Call `on_look(job_id, step)` before a job asks whether it is to give way."""
    is_wanted = GivingWay.is_wanted

    def looked(asked: GivingWay, step: int, steps: int) -> bool:
        on_look(asked._job.id, step)
        return is_wanted(asked, step, steps)

    monkeypatch.setattr(GivingWay, "is_wanted", looked)


def latents(served: ServedModel, job_id: str) -> torch.Tensor:
    clip = load_clip(job_artifacts(served.settings.jobs_dir, job_id).latents)
    return clip.calls[0].latents


def test_ten_urgent_jobs_in_a_row_interrupt_a_long_one_twice_and_cost_no_step(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = served.submit(num_inference_steps=STEPS)
    work(served)
    low = served.submit(num_inference_steps=STEPS)
    urgent: list[str] = []

    def arrives(job_id: str, _step: int) -> None:
        if job_id == low and len(urgent) < 10:
            urgent.append(served.submit(priority=5))

    at_each_look(monkeypatch, arrives)
    attempts = work(served)
    assert attempts.count(low) == 1 + MOST_PREEMPTIONS
    assert attempts[1] == urgent[0], "the device goes to the job that it was taken for"
    job = served.job(low)
    assert (job["status"], job["preemptions"], job["attempts"], job["gave_way"]) == ("succeeded", 2, 1, None)
    assert torch.equal(latents(served, low), latents(served, undisturbed))
    assert {served.job(each)["status"] for each in urgent} == {"succeeded"}
    assert [event["priority"] for event in served.events("preempted")] == [5, 5]
    counted = served.counted()
    assert total(counted, "framefit_preemptions_total", model="mine") == 2
    assert served.engine.load_seconds("mine") > 0
    assert total(counted, "framefit_denoise_steps_total", how="computed") == 2 * STEPS + len(urgent)


def test_the_job_tells_what_it_keeps_while_it_waits(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = served.submit(num_inference_steps=STEPS)
    told: list[dict[str, Any]] = []

    def looks(job_id: str, step: int) -> None:
        if job_id == low and step == 4:
            served.submit(priority=1, num_inference_steps=2)
        elif job_id != low:
            told.append(served.job(low))

    at_each_look(monkeypatch, looks)
    work(served)
    waiting = told[0]
    assert (waiting["status"], waiting["preemptions"]) == ("queued", 1)
    assert waiting["gave_way"] == "gave way to a job of higher priority; 4 of 10 steps are kept"
    assert (served.job(low)["denoise"]["resumed_from_step"], served.job(low)["status"]) == (4, "succeeded")
    ended = {"steps": STEPS, "steps_computed": STEPS - 4, "resumed_from_step": 4}
    assert served.events("finished")[-1]["denoise"] == ended, "its seconds are those of the steps computed"


@pytest.mark.parametrize("case", ["not resumable", "last step", "loading"])
def test_a_job_keeps_its_device(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(giving_way, "ASK_SECONDS", 0.0)
    with served_model(tmp_path / "data", folder, checkpoint_seconds=0, preempt_after_seconds=1e-6) as served:
        if case == "not resumable":
            monkeypatch.setattr("app.worker.denoise.resumes._found", {})
            monkeypatch.setattr("app.worker.denoise.resumes._why_not", lambda _: "something passes outside")
        if case == "loading":
            monkeypatch.setattr(GivingWay, "_load_seconds", lambda *_: 3600.0)
        low, high = served.submit(num_inference_steps=STEPS), []
        arrives_at = STEPS if case == "last step" else 2
        saved = served.engine.__class__.load

        def loaded(*args: Any, **kwargs: Any) -> Any:
            model = saved(*args, **kwargs)
            denoise = model.denoise

            def denoised(spec: Any, image: bytes, *, on_step: Any, **options: Any) -> Any:
                def stepped(done: int, steps: int) -> None:
                    if done == arrives_at and not high:
                        high.append(served.submit(priority=5))
                    on_step(done, steps)

                return denoise(spec, image, on_step=stepped, **options)

            monkeypatch.setattr(model, "denoise", denoised)
            return model

        monkeypatch.setattr(served.engine.__class__, "load", loaded)
        assert work(served) == [low, *high]
        assert served.job(low)["preemptions"] == 0
        assert served.events("preempted") == []


def test_a_job_goes_on_if_the_urgent_one_is_canceled_meanwhile(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high = served.submit(num_inference_steps=STEPS), []

    def arrives(job_id: str, step: int) -> None:
        if job_id == low and step == 3:
            high.append(served.submit(priority=5))

    at_each_look(monkeypatch, arrives)
    give_way = GivingWay.give_way

    def too_late(asked: GivingWay) -> Any:
        served.http.delete(f"/jobs/{high[0]}")
        return give_way(asked)

    monkeypatch.setattr(GivingWay, "give_way", too_late)
    assert work(served) == [low]
    assert served.job(low)["denoise"]["steps_computed"] == STEPS
    assert served.job(low)["preemptions"] == 0


@pytest.mark.parametrize("place", ["at the hub", "on this machine"])
def test_a_job_keeps_its_device_from_one_whose_model_must_be_downloaded_first(
    served: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(GivingWay, "_load_seconds", lambda *_: 0.0)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    other = served.models["ltx-video"]
    if place == "on this machine":
        put_here(other)
    low, high = served.submit(num_inference_steps=STEPS), []

    def arrives(_job_id: str, step: int) -> None:
        if step == 2:
            with closing(open_store(served.settings)) as store:
                spec = store.get(low).spec.model_copy(update={"model": other.name, "priority": 5})
                high.append(store.add(spec, b"a picture").id)

    at_each_look(monkeypatch, arrives)
    with closing(open_store(served.settings)) as store:
        worker = Worker(served.settings, served.models, store, served.engine, "here")
        claim = worker._claim()
        assert claim is not None
        following = worker._run_job(claim)
    if place == "at the hub":
        assert following is None
        assert served.job(low)["status"] == "succeeded"
    else:
        assert following is not None
        assert [following.job.id] == high
    assert served.job(low)["preemptions"] == (0 if place == "at the hub" else 1)
