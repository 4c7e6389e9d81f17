"""Memory that is missing while a job runs: the job says so, and loses no more than it must."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from served_model import ServedModel, served_model

from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.errors import DecodeOutOfMemory
from app.worker.engine import Engine


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedModel]:
    tiny_pipelines.build("LTXImageToVideoPipeline").save_pretrained(tmp_path / "model")
    options = {"reserve_bytes": 100, "memory_wait_seconds": 2}
    with served_model(tmp_path / "data", tmp_path / "model", **options) as found:
        yield found


def test_memory_that_is_missing_where_nothing_expects_it_is_no_internal_error(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(_vae: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("app.worker.decoding.run_offload_hook", moved)
    job_id = served.submit()
    served.run_next()
    error = served.job(job_id)["error"]
    assert (error["code"], error["data"]["stage"]) == ("out_of_memory", "decoding")
    assert error["data"]["free_bytes"] > 0
    (told,) = served.events("oom")
    assert told["stage"] == "decoding"


@pytest.mark.parametrize(("free_bytes", "status"), [(150, "queued"), (2**40, "failed")])
def test_memory_within_the_reserve_counts_as_taken(
    free_bytes: int, status: str, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def frames(*_args: Any, **_kwargs: Any) -> Any:
        raise DecodeOutOfMemory(
            frames_per_chunk=1, retries=2, frames_done=0, needed_bytes=100, free_bytes=free_bytes
        )

    monkeypatch.setattr(AdaptiveDecoder, "frames", frames)
    job_id = served.submit()
    served.run_next()
    assert served.job(job_id)["status"] == status


def test_memory_that_comes_and_goes_is_waited_for_no_longer_than_memory_that_stays_away(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = itertools.cycle([0, 2**40])
    waits: list[bool] = []
    decoded = AdaptiveDecoder.frames

    def frames(decoder: AdaptiveDecoder, *args: Any, **kwargs: Any) -> Any:
        yield from decoded(decoder, *args, **kwargs)
        monkeypatch.setattr(Engine, "free_bytes", property(lambda _engine: next(free)))
        while len(waits) < 20 and decoder._wait_for_memory is not None:
            waits.append(decoder._wait_for_memory(2**30))
            if not waits[-1]:
                break
        raise DecodeOutOfMemory(frames_per_chunk=1, retries=2, frames_done=0, needed_bytes=2**30)

    monkeypatch.setattr(AdaptiveDecoder, "frames", frames)
    job_id = served.submit()
    served.run_next()
    assert served.job(job_id)["status"] == "queued"
    assert waits[0] is True
    assert waits[-1] is False
    waiting = served.events("waiting_for_memory")
    assert waiting[0]["progress"] > 0.8, "what was done stays done"
