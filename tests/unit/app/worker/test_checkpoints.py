"""An interrupted denoise goes on at its last step, with the same bits; checkpoints never fail a job."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from scraped import total
from served_model import ServedModel, served_model

from adaptive.pipelines.recorded_call import RecordedClip, load_clip
from app.artifacts.local_folder import JobArtifacts, job_artifacts
from app.store import open_store
from app.worker.denoise import identity
from app.worker.engine import Engine
from app.worker.job.control import JobControl
from app.worker.job.steps import StepsOfJob

LTX = "LTXImageToVideoPipeline"
STEPS = 4


class Killed(BaseException):
    """Stands for the end of the process: nothing of the service handles it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.save(LTX, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def served(tmp_path: Path, folder: Path) -> Iterator[ServedModel]:
    with served_model(tmp_path / "data", folder, checkpoint_seconds=0) as running:
        yield running


def artifacts(served: ServedModel, job_id: str) -> JobArtifacts:
    return job_artifacts(served.settings.jobs_dir, job_id)


def killed_in_step(served: ServedModel, step: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job whose worker ends while it computes the step; returns its id. It is queued again."""
    model = served.engine.load(served.models["mine"], lambda *_: None)
    forward, calls = model.pipe.transformer.forward, []

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            raise Killed
        return forward(*args, **kwargs)

    job_id = served.submit(num_inference_steps=STEPS)
    with monkeypatch.context() as patched:
        patched.setattr(model.pipe.transformer, "forward", dies)
        with pytest.raises(Killed):
            served.run_next()
    requeue(served, job_id)
    return job_id


def requeue(served: ServedModel, job_id: str) -> None:
    with closing(open_store(served.settings)) as store:
        job = store.get(job_id)
        assert job is not None
        assert store.release(job_id, job.token, "worker_crashed")


def in_a_new_process(served: ServedModel) -> ServedModel:
    return replace(served, engine=Engine(served.settings, "cpu"))


def latents(served: ServedModel, job_id: str) -> RecordedClip:
    return load_clip(artifacts(served, job_id).latents)


def whole(served: ServedModel) -> RecordedClip:
    job_id = served.submit(num_inference_steps=STEPS)
    served.run_next()
    assert served.job(job_id)["denoise"]["steps_computed"] == STEPS
    return latents(served, job_id)


def equal(one: RecordedClip, other: RecordedClip) -> bool:
    return torch.equal(one.calls[0].latents, other.calls[0].latents)


def test_a_killed_denoise_goes_on_at_its_last_step_with_the_same_bits(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(served)
    job_id = killed_in_step(served, 3, monkeypatch)
    files = artifacts(served, job_id)
    assert files.denoise_steps.exists()
    assert files.denoise_inputs.exists()
    again = in_a_new_process(served)
    again.run_next()
    job = served.job(job_id)
    assert job["status"] == "succeeded"
    assert (job["denoise"]["resumed_from_step"], job["denoise"]["steps_computed"]) == (2, 2)
    assert equal(latents(served, job_id), expected)
    assert [(event["step"], event["steps"]) for event in served.events("resumed")] == [(2, STEPS)]
    assert job["attempts"] == 1, "the checkpoint is durable progress"
    assert not files.denoise_steps.exists()
    assert not files.denoise_inputs.exists()
    counted = served.counted()
    assert total(counted, "framefit_denoise_steps_total", how="computed") == 2 * STEPS
    assert total(counted, "framefit_denoise_steps_total", how="resumed") == 2


def test_progress_shows_the_resumed_step_at_once(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in_step(served, 4, monkeypatch)
    in_a_new_process(served).run_next()
    (event,) = served.events("resumed")
    assert (event["step"], event["stage"]) == (3, "denoising")
    assert event["progress"] == pytest.approx(0.02 + 0.75 * 0.78)


def flipped(files: JobArtifacts) -> None:
    content = bytearray(files.denoise_steps.read_bytes())
    content[-5] ^= 1
    files.denoise_steps.write_bytes(content)


def cut(files: JobArtifacts) -> None:
    files.denoise_inputs.write_bytes(files.denoise_inputs.read_bytes()[:-100])


def without_inputs(files: JobArtifacts) -> None:
    files.denoise_inputs.unlink()


@pytest.mark.parametrize("damage", [flipped, cut, without_inputs])
def test_a_damaged_checkpoint_is_told_of_and_the_job_begins_at_zero(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    job_id = killed_in_step(served, 3, monkeypatch)
    damage(artifacts(served, job_id))
    served.run_next()
    job = served.job(job_id)
    assert job["status"] == "succeeded"
    assert (job["denoise"]["resumed_from_step"], job["denoise"]["steps_computed"]) == (0, STEPS)
    (event,) = served.events("checkpoint_unusable")
    assert "it is damaged" in event["reason"]
    assert equal(latents(served, job_id), whole(served))


def test_a_checkpoint_of_other_weights_or_of_another_library_is_not_used(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in_step(served, 3, monkeypatch)
    with torch.no_grad():
        served.engine.load(served.models["mine"], lambda *_: None).pipe.transformer.proj_out.bias.add_(1)
    served.run_next()
    killed_in_step(served, 2, monkeypatch)
    monkeypatch.setattr(identity, "version", lambda _: "0.1")
    served.run_next()
    reasons = [event["reason"] for event in served.events("checkpoint_unusable")]
    assert reasons == ["it was made with another weights", "it was made with another library version"]
    assert served.events("resumed") == []


def test_a_redecode_with_other_decode_fields_goes_on_at_the_last_step(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = killed_in_step(served, 3, monkeypatch)
    assert served.http.delete(f"/jobs/{job_id}").json()["status"] == "canceled"
    changes = {"embed_metadata": False, "exact_only": False, "memory_budget_bytes": 2**40}
    answer = served.http.post(f"/jobs/{job_id}/redecode", json=changes)
    assert answer.status_code == 202, answer.text
    served.run_next()
    assert served.events("checkpoint_unusable") == []
    assert served.job(job_id)["denoise"]["resumed_from_step"] == 2


def test_a_checkpoint_that_cannot_be_replayed_costs_its_steps_and_nothing_else(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = killed_in_step(served, 3, monkeypatch)

    def other_calls(*_: Any) -> Any:
        raise KeyError("a field of another version")

    with monkeypatch.context() as patched:
        patched.setattr("adaptive.denoise.record.restore", other_calls)
        served.run_next()
    assert served.job(job_id)["status"] == "succeeded"
    (event,) = served.events("checkpoint_unusable")
    assert "it cannot be replayed" in event["reason"]


def test_a_full_disk_ends_checkpoints_and_not_the_job(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.worker.denoise.checkpoint_file._write", full)
    job_id = served.submit(num_inference_steps=STEPS)
    served.run_next()
    assert served.job(job_id)["status"] == "succeeded"
    (event,) = served.events("checkpoint_unusable")
    assert "No space left on device" in event["reason"]


def test_a_job_that_is_handed_back_keeps_its_steps_and_its_attempts(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(served)
    job_id = served.submit(num_inference_steps=STEPS)
    saved = StepsOfJob.saved

    def stops_after_two(steps: StepsOfJob, step: int, total: int, data: Any) -> None:
        saved(steps, step, total, data)
        if step == 2:
            steps._control.hand_back()  # as the worker does on SIGTERM

    with monkeypatch.context() as patched:
        patched.setattr(StepsOfJob, "saved", stops_after_two)
        served.run_next()
    job = served.job(job_id)
    assert (job["status"], job["attempts"]) == ("queued", 0), "an end in good order costs no attempt"
    in_a_new_process(served).run_next()
    job = served.job(job_id)
    assert job["status"] == "succeeded"
    assert job["denoise"]["resumed_from_step"] == 3
    assert equal(latents(served, job_id), expected)


def test_a_checkpoint_that_is_not_due_is_written_when_the_job_goes_back(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_model(tmp_path / "data", folder, checkpoint_seconds=3600) as served:
        monkeypatch.setattr(JobControl, "goes_back", property(lambda _: True))
        job_id = served.submit(num_inference_steps=STEPS)
        served.run_next()
        assert served.job(job_id)["status"] == "queued"
        assert [event["step"] for event in served.events("checkpoint")] == [1]


def test_a_pipeline_that_cannot_be_resumed_is_named_and_runs_without(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.worker.denoise.resumes._found", {})
    monkeypatch.setattr("app.worker.denoise.resumes._why_not", lambda _: "something passes outside")
    job_id = served.submit(num_inference_steps=STEPS)
    served.run_next()
    assert served.job(job_id)["status"] == "succeeded"
    (event,) = served.events("not_resumable")
    assert event["reason"] == "something passes outside"
    assert served.events("checkpoint") == []


def test_a_job_that_fails_for_memory_keeps_its_steps_for_a_retry(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_model(tmp_path / "data", folder, checkpoint_seconds=3600) as served:
        expected = whole(served)
        model = served.engine.load(served.models["mine"], lambda *_: None)
        forward, calls = model.pipe.transformer.forward, []

        def runs_out(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(*args, **kwargs)

        job_id = served.submit(num_inference_steps=STEPS)
        with monkeypatch.context() as patched:
            patched.setattr(model.pipe.transformer, "forward", runs_out)
            served.run_next()
        assert served.job(job_id)["status"] == "failed"
        assert [event["step"] for event in served.events("checkpoint")] == [2]
        assert served.http.post(f"/jobs/{job_id}/retry").status_code == 202
        served.run_next()
        job = served.job(job_id)
        assert job["status"] == "succeeded"
        assert (job["denoise"]["resumed_from_step"], job["denoise"]["steps_computed"]) == (2, 2)
        assert equal(latents(served, job_id), expected)


def test_the_files_go_with_the_job(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.service.disposal import Disposal

    job_id = killed_in_step(served, 3, monkeypatch)
    assert served.http.post(f"/jobs/{job_id}/delete").status_code == 202
    monkeypatch.setattr("app.store.upkeep.deletion.GRACE_SECONDS", -1.0)
    with closing(open_store(served.settings)) as store:
        Disposal(served.settings, store).turn()
    assert not artifacts(served, job_id).denoise_steps.exists()
