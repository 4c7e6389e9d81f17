"""A worker whose job waits for memory runs smaller ones meanwhile: the real worker, run and store; a device
that has memory for the small.
"""

from pathlib import Path
from typing import Any

import pytest

from adaptive.errors import DoesNotFit
from app.config import Settings
from app.fields.roles import Role
from app.jobs import Job, JobSpec, JobStatus
from app.models.entries import load_models
from app.store import JobStore, Rules
from app.worker.loop import Worker
from app.worker.pipeline_call import UnsuitablePipeline

FREE_BYTES, BIG_BYTES, SMALL_BYTES = 1000, 5000, 100
MAX_SKIPS = 2


class CrampedDevice:
    """Holds a loaded model; a large video's denoising does not fit what is free, a small one's fails."""

    device = "cuda:0"
    role = Role.BOTH
    loaded_model = "tiny"
    claimable_bytes = 10 * BIG_BYTES
    free_bytes = FREE_BYTES
    host_capacity_bytes = None

    def __init__(self) -> None:
        self.ran: list[int] = []

    def load(self, _entry: Any, _on_event: Any, **_job: Any) -> "CrampedDevice":
        return self

    def may_fit_later(self, _refusal: DoesNotFit, _budget: int | None = None) -> bool:
        return True

    def memory_report(self) -> dict[str, Any]:
        return {"free_bytes": FREE_BYTES, "own_bytes": 10, "other_bytes": 9000, "holders": []}

    def fit_denoise(self, spec: JobSpec, _on_event: Any, **_options: Any) -> dict[str, Any]:
        self.ran.append(spec.seed)
        if spec.width > 64:
            raise DoesNotFit("denoising", needed_bytes=BIG_BYTES, budget_bytes=FREE_BYTES)
        raise UnsuitablePipeline("this is as far as the test goes")

    def clean_up(self) -> None:
        """Nothing is kept."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, reserve_bytes=0, memory_wait_seconds=0.5)


@pytest.fixture
def store(settings: Settings) -> JobStore:
    store = JobStore(settings.resolved_database_url, rules=Rules(max_skips=MAX_SKIPS))
    store.migrate()
    return store


def added(store: JobStore, seed: int, *, width: int, needed_bytes: int) -> Job:
    spec = JobSpec(
        prompt="x",
        model="tiny",
        width=width,
        height=64,
        num_frames=17,
        fps=8,
        num_inference_steps=1,
        guidance_scale=1,
        seed=seed,
    )
    return store.add(spec, b"picture", needed_bytes=needed_bytes)


def test_small_jobs_run_while_a_big_one_waits_up_to_the_limit_of_skips(
    settings: Settings, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.worker.job.control.MEMORY_POLL_SECONDS", 0.01)
    monkeypatch.setattr("app.worker.job.control.PATIENCE_SECONDS", 0.05)
    big = added(store, 1, width=512, needed_bytes=BIG_BYTES)
    small = [added(store, seed, width=64, needed_bytes=SMALL_BYTES) for seed in (2, 3, 4)]
    device = CrampedDevice()
    worker = Worker(settings, load_models(settings), store, device, "w")  # type: ignore[arg-type]
    while (claim := worker._claim()) is not None:
        while claim is not None:
            claim = worker._run_job(claim)
    order = [seed for seed, before in zip(device.ran, [0, *device.ran], strict=False) if seed != before]
    assert order == [1, 2, 1, 3, 1, 4]  # after two it stays, until its own time is over
    events = store.events_after(0, 1000, big.id)
    made_way = [event for event in events if event.data.get("reason") == "made_way_for_a_smaller_job"]
    assert len(made_way) == MAX_SKIPS
    waiting = next(event for event in events if event.kind == "waiting_for_memory")
    assert waiting.data["needed_bytes"] == BIG_BYTES
    assert waiting.data["other_bytes"] == 9000
    ended = store.get(big.id)
    assert (ended.status, ended.attempts) == (JobStatus.FAILED, 1)
    assert ended.error is not None
    assert ended.error["code"] == "does_not_fit"
    assert all(store.get(job.id).attempts == 1 for job in small)
    store.close()
