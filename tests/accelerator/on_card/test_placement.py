"""Where the weights of a loaded model are: at the fastest place for each job, not for the first one."""

from collections.abc import Iterator
from pathlib import Path

import fat_model
import pytest
import torch
from pretended import MIB, Card
from worker_on_card import WorkerOnCard

from app.jobs import Job, JobStatus

GUIDED = {"model": "fat", "guidance_scale": 3.0, "decode_strategy": "per_frame"}
LARGE = {**GUIDED, "width": 256, "height": 256, "num_frames": 33}
SMALL = {**GUIDED, "num_frames": 9}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fat_model.save(tmp_path_factory.mktemp("models") / "fat")


@pytest.fixture
def worker(
    tmp_path: Path, model: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerOnCard]:
    fat_model.scale_margins(monkeypatch)
    found = fat_model.worker(tmp_path / "data", model, device)
    yield found
    found.store.close()


def _placement(job: Job) -> str:
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.denoise is not None
    return str(job.denoise["placement"])


def test_a_loaded_model_moves_for_each_job_and_reads_its_weights_once(
    worker: WorkerOnCard, card: Card
) -> None:
    roomy = worker.run(**LARGE)
    assert _placement(roomy) == "resident"
    worker.engine.clean_up()
    card.capacity_bytes = 142 * MIB  # the large job needs the text encoder's memory
    large = worker.run(**LARGE)
    lean = _placement(large)
    assert lean != "resident"
    card.capacity_bytes = 168 * MIB
    small = worker.run(**SMALL)
    assert _placement(small) == "resident", worker.engine.device_report()["loaded_placement"]
    (moved,) = worker.events(small.id, "placed")
    assert (moved.data["from"], moved.data["kind"]) == (lean, "resident")
    card.capacity_bytes = 142 * MIB
    again = worker.run(**LARGE)
    assert _placement(again) == lean
    assert worker.video(large) == worker.video(again) == worker.video(roomy)
    loads = [event.kind for event in worker.store.events_after(0, 1000)].count("loaded")
    assert loads == 1


def test_a_model_is_loaded_for_the_shape_of_its_first_job(worker: WorkerOnCard, card: Card) -> None:
    card.capacity_bytes = 128 * MIB
    job = worker.run(**{**LARGE, "num_frames": 65})  # as large as the text encoder
    assert _placement(job) == "drop_text_encoder"
    (loaded,) = worker.events(job.id, "loaded")
    assert loaded.data["placement"]["kind"] == "drop_text_encoder"


def test_a_job_waits_for_a_neighbour_that_leaves_too_little_at_its_start(
    model: Path, tmp_path: Path, device: str, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    fat_model.scale_margins(monkeypatch)
    worker = fat_model.worker(tmp_path / "data", model, device, reserve_bytes=48 * MIB)
    assert worker.run(**SMALL).status is JobStatus.SUCCEEDED
    torch.cuda.empty_cache()
    card.capacity_bytes = sum(card.used_by.values()) + 72 * MIB

    def act(kind: str, data: dict[str, object]) -> None:
        if kind == "stage" and data["stage"] == "loading":
            card.leave(MIB)
        elif kind == "waiting_for_memory":
            card.ballast_bytes = 0

    worker.store.act = act
    job = worker.run(**LARGE)
    assert job.status is JobStatus.SUCCEEDED, job.error
    (waiting,) = worker.events(job.id, "waiting_for_memory")
    assert waiting.data["needed_bytes"] > 0
    worker.store.close()
