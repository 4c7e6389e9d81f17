"""A job whose denoise runs out of memory goes on where it failed, in less memory, and says so."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from failing_operation import FailingOperation
from scraped import total
from served_model import ServedModel, served_model
from torch import nn

from adaptive.pipelines.recorded_call import load_clip

GUIDED = {"guidance_scale": 3.0, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.save("LTXImageToVideoPipeline", tmp_path_factory.mktemp("models") / "mine")


@pytest.fixture
def served(tmp_path: Path, source: Path) -> Iterator[ServedModel]:
    with served_model(tmp_path / "data", source, memory_wait_seconds=1) as found:
        yield found


def done(served: ServedModel, **fields: Any) -> dict[str, Any]:
    job_id = served.submit(**{**GUIDED, **fields})
    served.run_next()
    return served.job(job_id)


def latents(served: ServedModel, job: dict[str, Any]) -> torch.Tensor:
    assert job["status"] == "succeeded", job["error"]
    return load_clip(served.settings.jobs_dir / job["id"] / "latents.safetensors").calls[0].latents


def denoising(monkeypatch: pytest.MonkeyPatch, failing: FailingOperation) -> None:
    """Let `failing` see what the pipeline computes."""
    from app.worker import loaded_model

    run_pipeline = loaded_model.run_pipeline

    def failing_run(*args: Any, **kwargs: Any) -> Any:
        with failing:
            return run_pipeline(*args, **kwargs)

    monkeypatch.setattr(loaded_model, "run_pipeline", failing_run)


def test_jobs_survive_a_failure_at_any_operation_and_lose_no_step(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = FailingOperation()
    _transformer(served)  # loaded and tested: that counts no operations
    with monkeypatch.context() as patch:
        denoising(patch, operations)
        untouched = latents(served, done(served))
    for at in random.Random(3).sample(range(operations.seen), 4):
        failing = FailingOperation(at)
        with monkeypatch.context() as patch:
            denoising(patch, failing)
            job = done(served)
        assert failing.failed == 1
        assert torch.equal(latents(served, job), untouched), at
        (fallback,) = job["denoise"]["fallbacks"]
        assert (fallback["from"], fallback["to"]) == ("resident", "released_caches")
        assert job["denoise"]["same_arithmetic"] is True
        assert job["denoise"]["retries"] == 1
    assert len(served.events("oom")) == len(served.events("denoise_fallback")) == 4
    steps_down = {"from": "resident", "to": "released_caches"}
    assert total(served.counted(), "framefit_denoise_fallback_total", **steps_down) == 4


def test_progress_never_goes_back_while_steps_are_repeated(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.worker.job.reports._PROGRESS_EVERY_SECONDS", 0.0)
    operations = FailingOperation()
    with monkeypatch.context() as patch:
        denoising(patch, operations)
        done(served)
    before = len(served.events("progress"))
    with monkeypatch.context() as patch:
        denoising(patch, FailingOperation(operations.seen - 1))  # after the last step
        job = done(served)
    assert job["status"] == "succeeded"
    steps = [data["step"] for data in served.events("progress")[before:] if "step" in data]
    assert steps == [1, 2, 3, 4]


def after_the_steps_of_a_scheduler(monkeypatch: pytest.MonkeyPatch, *failing: int) -> None:
    """Run out of memory after these steps (from 1 on, also those from memory), before they are reported."""
    from adaptive.denoise.record import _WatchedScheduler

    took, calls = _WatchedScheduler.took, iter(range(1, 1000))

    def fails(self: _WatchedScheduler, result: Any) -> None:
        if next(calls) in failing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        took(self, result)

    monkeypatch.setattr(_WatchedScheduler, "took", fails)


def test_steps_that_are_answered_from_memory_are_neither_reported_nor_saved(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_model(tmp_path / "data", source, memory_wait_seconds=1, checkpoint_seconds=0) as served:
        untouched = latents(served, done(served))
        before = len(served.events("checkpoint"))
        with monkeypatch.context() as patch:
            after_the_steps_of_a_scheduler(patch, 3)
            job = done(served)
        assert torch.equal(latents(served, job), untouched)
        assert job["denoise"]["steps_computed"] == 4
        assert [data["step"] for data in served.events("checkpoint")[before:]] == [1, 2, 3, 4]


def without_memory_after_step(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Run out of memory after that step, and at each later call of the pipeline before its first one."""
    from app.worker import loaded_model

    run_pipeline, calls = loaded_model.run_pipeline, iter(range(100))

    def fails(*arguments: Any) -> Any:
        if next(calls):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        *others, on_step = arguments

        def then_fails(done: int, total: int) -> None:
            on_step(done, total)
            if done == last:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

        return run_pipeline(*others, then_fails)

    monkeypatch.setattr(loaded_model, "run_pipeline", fails)


def test_a_job_that_fails_before_its_steps_are_answered_from_memory_keeps_them(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_model(tmp_path / "data", source, memory_wait_seconds=0, checkpoint_seconds=1000) as served:
        untouched = latents(served, done(served))
        handle = _transformer(served).register_forward_pre_hook(_one_at_most, with_kwargs=True)
        with monkeypatch.context() as patch:
            without_memory_after_step(patch, 3)
            job = done(served)
        handle.remove()
        assert job["error"]["code"] == "out_of_memory"
        assert served.http.post(f"/jobs/{job['id']}/retry").status_code == 202
        served.run_next()
        job = served.job(job["id"])
        assert (latents(served, job) - untouched).abs().max() < 1e-5
        denoise = job["denoise"]
        assert (denoise["resumed_from_step"], denoise["steps_computed"]) == (3, 1)
        assert "guidance_in_two_passes" in [each["to"] for each in denoise["fallbacks"]]
        assert denoise["same_arithmetic"] is False, "the steps before the retry count, too"


def _one_at_most(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
    if kwargs["hidden_states"].shape[0] > 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_guidance_goes_in_two_passes_where_both_at_once_do_not_fit(served: ServedModel) -> None:
    untouched = latents(served, done(served))
    transformer = _transformer(served)
    passes: list[int] = []

    def one_at_most(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        passes.append(kwargs["hidden_states"].shape[0])
        if passes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = transformer.register_forward_pre_hook(one_at_most, with_kwargs=True)
    job = done(served)
    handle.remove()
    assert (latents(served, job) - untouched).abs().max() < 1e-5
    assert passes == [2, 2, *[1] * 8]  # the first step tried both twice; no step began again
    denoise = job["denoise"]
    assert [each["to"] for each in denoise["fallbacks"]] == ["released_caches", "guidance_in_two_passes"]
    assert denoise["same_arithmetic"] is False
    passes.clear()
    assert "fallbacks" not in done(served)["denoise"], "the next job begins as if nothing had been"


def test_a_job_that_nothing_helps_says_how_much_was_missing(served: ServedModel) -> None:
    def never(_module: nn.Module, _args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    done(served)
    handle = _transformer(served).register_forward_pre_hook(never)
    job = done(served)
    handle.remove()
    assert job["status"] == "failed"
    error = job["error"]
    assert error["code"] == "out_of_memory"
    assert error["data"]["stage"] == "denoising"
    assert error["data"]["needed_bytes"] > error["data"]["free_bytes"] > 0
    assert "cannot be made smaller" not in error["message"]
    assert done(served)["status"] == "succeeded"


def _transformer(served: ServedModel) -> nn.Module:
    model = served.engine.load(served.models["mine"], lambda *_: None)
    transformer: nn.Module = model.pipe.transformer
    return transformer
