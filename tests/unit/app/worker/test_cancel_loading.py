"""A job that is canceled while its model loads: the real worker, engine and model; the moment is ours."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.config import Settings
from app.jobs import Job, JobSpec, JobStatus
from app.models.entries import load_models
from app.store import JobStore
from app.worker import engine as engines
from app.worker.engine import Engine
from app.worker.loop import Worker


@pytest.fixture
def settings(tmp_path: Path, tiny_folder: Path) -> Settings:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny_folder)
    return Settings(data_dir=tmp_path, calibrate_seconds=0)


@pytest.fixture
def store(settings: Settings) -> JobStore:
    store = JobStore(settings.resolved_database_url)
    store.migrate()
    return store


def added(store: JobStore, seed: int) -> Job:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
    spec = JobSpec(
        prompt="x",
        model="tiny",
        width=64,
        height=64,
        num_frames=9,
        fps=8,
        num_inference_steps=1,
        guidance_scale=1,
        seed=seed,
    )
    return store.add(spec, file.getvalue())


def test_it_ends_before_denoising_and_the_worker_continues(
    settings: Settings, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    canceled, following = added(store, 1), added(store, 2)
    worker = Worker(settings, load_models(settings), store, Engine(settings, "cpu"), "w")
    load, loads = engines.load_pipeline, []

    def load_while_somebody_cancels(*args: Any, **options: Any) -> Any:
        loads.append(store.get(canceled.id).stage)
        if len(loads) == 1:
            assert store.cancel(canceled.id).cancel_requested
            worker._beat(worker._current)  # what the worker's own thread does every second
        return load(*args, **options)

    monkeypatch.setattr(engines, "load_pipeline", load_while_somebody_cancels)
    for job in (canceled, following):
        claim = worker._claim()
        assert claim is not None
        assert claim.job.id == job.id
        worker._run_job(claim)
    ended = store.get(canceled.id)
    assert (loads[0], ended.status, ended.attempts) == ("loading", JobStatus.CANCELED, 1)
    events = store.events_after(0, 1000, canceled.id)
    assert [event.kind for event in events][-2:] == ["canceled", "finished"]
    assert not [event for event in events if event.data.get("stage") == "denoising"]
    assert store.get(following.id).status is JobStatus.SUCCEEDED
    store.close()
