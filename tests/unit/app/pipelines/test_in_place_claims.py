"""Jobs that decode in place are claimed and admitted for the memory of the worker that denoises them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
from in_place_served import picture, served_in_place
from served_model import ServedModel, served_model

from app.fields.roles import Role
from app.store import JobStore, open_store
from app.worker.engine import Engine
from app.worker.loop import Worker

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
OWN_BYTES = 1000


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedModel]:
    with served_in_place(tmp_path, "HeliosPipeline") as running:
        yield running


@pytest.fixture
def store(served: ServedModel) -> Iterator[JobStore]:
    with closing(open_store(served.settings)) as opened:
        yield opened


def submitted(served: ServedModel) -> Any:
    data = {"model": "mine", "prompt": "a bear", "seed": 5}
    return served.http.post("/generate", data=data, files={"image": ("photo.png", picture())})


def worker(served: ServedModel, store: JobStore, role: Role, capacity_bytes: int) -> Worker:
    """A live worker of the role, whose device reports so much memory."""
    name = str(role)
    made = Worker(served.settings, served.models, store, Engine(served.settings, "cpu", role), name)
    store.register_worker(name, {**made._device(), "capacity_bytes": capacity_bytes})
    return made


def test_a_job_that_decodes_in_place_is_not_claimed_for_the_memory_of_a_worker_that_decodes(
    served: ServedModel, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be handed over: a larger worker that denoises takes it."""
    job_id = submitted(served).json()["id"]
    worker(served, store, Role.DECODE, 2**40)
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "claimable_bytes", OWN_BYTES)
        assert worker(served, store, Role.BOTH, OWN_BYTES)._claim() is None
    claim = worker(served, store, Role.BOTH, 2**40)._claim()
    assert claim is not None
    assert claim.job.id == job_id


def test_a_job_that_decodes_in_place_is_refused_if_only_a_worker_that_decodes_could_hold_it(
    served: ServedModel, store: JobStore
) -> None:
    worker(served, store, Role.BOTH, OWN_BYTES)
    worker(served, store, Role.DECODE, 2**40)
    answer = submitted(served)
    assert answer.status_code == 422
    assert answer.json()["available_bytes"] == OWN_BYTES


def test_beside_a_model_that_decodes_in_place_larger_jobs_of_others_are_claimed_for_a_worker_that_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_pipelines.save("LTXImageToVideoPipeline", tmp_path / "model")
    monkeypatch.setattr(Engine, "claimable_bytes", OWN_BYTES)
    with served_model(tmp_path / "data", folder) as served, closing(open_store(served.settings)) as store:
        job_id = served.submit()
        in_place = served.models["mine"].model_copy(update={"name": "other", "decode_in_place": True})
        served.models["other"] = in_place
        denoising = worker(served, store, Role.BOTH, OWN_BYTES)
        assert denoising._claim() is None
        worker(served, store, Role.DECODE, 2**40)
        claim = worker(served, store, Role.BOTH, OWN_BYTES)._claim()
        assert claim is not None
        assert claim.job.id == job_id
