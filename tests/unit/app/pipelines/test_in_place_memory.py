"""Memory that goes missing around a decode in place: weights come back, and nothing is denoised twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from in_place_served import finished, history, picture, served_in_place
from served_model import ServedModel, served_model

from adaptive.errors import DoesNotFit
from adaptive.stream import join_chunks
from app.worker import decoding
from app.worker.decoding import Decoding
from app.worker.idle_weights import IdleWeights
from app.worker.loaded_model import LoadedModel

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
MISSING = "CUDA out of memory. Tried to allocate 2.00 MiB."


class Weights(IdleWeights):
    """Idle weights that find no room at their first `refusals` ways back."""

    refusals = 0

    def restore(self, free_bytes: int) -> None:
        if not self.on_device and self.refusals:
            self.refusals -= 1
            raise DoesNotFit("restoring weights to the device", needed_bytes=2, budget_bytes=1)
        super().restore(free_bytes)


def dropped_by_each_decode(served: ServedModel, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """The idle weights of the model, which each of its decodes moves off the device."""
    model = served.engine.load(served.models["mine"], lambda *_: None)
    assert isinstance(model, LoadedModel)
    weights = Weights([model.pipe.transformer], torch.device("cpu"))
    model._context = replace(model._context, idle=weights)
    frames = Decoding.frames

    def dropping(decode: Decoding) -> Iterator[torch.Tensor]:
        weights.drop()
        yield from frames(decode)

    monkeypatch.setattr(Decoding, "frames", dropping)
    return weights


def runs_of(monkeypatch: pytest.MonkeyPatch, look: Any = lambda: None) -> list[Any]:
    """What `look` returns as each run of the pipeline starts."""
    make, runs = LoadedModel.make, []

    def counted(model: LoadedModel, *args: Any, **kwargs: Any) -> Any:
        runs.append(look())
        return make(model, *args, **kwargs)

    monkeypatch.setattr(LoadedModel, "make", counted)
    return runs


def failing_at(call: int, original: Any) -> Any:
    """`original`, whose call of that number finds no memory."""
    calls: list[int] = []

    def made(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError(MISSING)
        return original(*args, **kwargs)

    return made


def test_a_run_after_one_that_ran_out_of_memory_behind_its_decode_starts_with_its_weights_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_pipelines.save("LTXImageToVideoPipeline", tmp_path / "model")
    with served_model(tmp_path / "data", folder) as served:
        served.models["mine"] = served.models["mine"].model_copy(update={"decode_in_place": True})
        weights = dropped_by_each_decode(served, monkeypatch)
        runs = runs_of(monkeypatch, lambda: weights.on_device)
        processor = served.engine.load(served.models["mine"], lambda *_: None).pipe.video_processor
        processor.postprocess_video = failing_at(1, processor.postprocess_video)
        job_id = served.submit()
        served.run_next()
        job = served.job(job_id)
        assert job["status"] == "succeeded", job["error"]
        assert runs == [True, True]


def test_weights_that_find_no_room_between_two_sections_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_in_place(tmp_path, "HeliosPipeline") as served:
        weights = dropped_by_each_decode(served, monkeypatch)
        weights.refusals = 1
        runs = runs_of(monkeypatch)
        job = finished(served)
        assert job["status"] == "succeeded", job["error"]
        assert len(runs) == 1
        told = history(served, job)
        (waited,) = [event.data for event in told if event.kind == "waiting_for_memory"]
        assert waited["needed_bytes"] > 0
        reached = [event.data["progress"] for event in told if "progress" in event.data]
        assert reached == sorted(reached)
        assert waited["progress"] == pytest.approx(0.02 + 0.95 / 2)  # the first of two sections is done


class Immovable(torch.Tensor):
    """Frames for which no other device has memory."""

    def to(self, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError(MISSING)


@pytest.mark.parametrize(
    "join",
    [failing_at(2, join_chunks), lambda *parts: join_chunks(*parts).as_subclass(Immovable)],
    ids=["joined", "moved"],
)
def test_memory_that_is_missing_for_joined_or_moved_frames_is_missing_in_the_decode(
    join: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is denoised a second time for it, and no step down of the denoise is told."""
    with served_in_place(tmp_path, "HeliosPipeline") as served:
        runs = runs_of(monkeypatch)
        monkeypatch.setattr(decoding, "join_chunks", join)
        job = finished(served)
        assert job["status"] == "failed"
        assert job["error"]["code"] == "out_of_memory"
        assert job["error"]["data"].get("stage", "decoding") == "decoding"
        assert len(runs) == 1
        told = history(served, job)
        assert [event.data["stage"] for event in told if event.kind == "oom"] == ["decoding"]
        assert not [event for event in told if event.kind == "denoise_fallback"]


def in_budget(served: ServedModel, **fields: Any) -> Any:
    """The answer to a request of 65 frames."""
    data = {"model": "mine", "prompt": "a bear", "num_frames": 65, **fields}
    return served.http.post("/generate", data=data, files={"image": ("photo.png", picture())})


@pytest.mark.parametrize(
    "pipeline", ["ChronoEditPipeline", "HeliosPipeline", "LTXI2VLongMultiPromptPipeline"]
)
def test_the_largest_shape_of_a_refusal_is_accepted_and_the_next_larger_one_is_not(
    pipeline: str, tmp_path: Path
) -> None:
    """It counts with the largest decode of the call, and with the frames that the pipeline gathers."""
    with served_in_place(tmp_path, pipeline) as served:
        most = in_budget(served, width=256, height=256, memory_budget_bytes=1).json()["needed_bytes"]
        told = []
        for budget in (most // 6, most // 2):
            refused = in_budget(served, width=256, height=256, memory_budget_bytes=budget)
            assert refused.status_code == 422
            largest = refused.json()["largest_shape_that_fits"]
            fitting = largest["width"] if largest else 0  # not even the smallest size may fit
            for side, status in ((fitting, 202), (fitting + 32, 422)):
                if side:
                    answer = in_budget(served, width=side, height=side, memory_budget_bytes=budget)
                    assert answer.status_code == status, (budget, side)
            told.append(fitting)
        assert told == sorted(told)
        assert told[-1] > 0
