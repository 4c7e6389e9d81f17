"""A clip that a pipeline encodes before it denoises, on a card whose memory a neighbour holds then."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pretended import MIB, Card
from worker_on_card import WorkerOnCard

from app.jobs import JobStatus

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import card_models

WAN = {"model": "wan", "width": 32, "height": 32, "num_frames": 9}


@pytest.fixture
def worker(tmp_path: Path, device: str) -> Iterator[WorkerOnCard]:
    wan = [model for model in card_models.MODELS if model.name == "wan"]
    (tmp_path / "built").mkdir()
    models_file = card_models.build(tmp_path / "built", wan, widened=False)
    made = WorkerOnCard(tmp_path / "data", tmp_path / "built", device, models_file=models_file)
    yield made
    made.store.close()


def test_an_encode_waits_for_memory_that_a_neighbour_holds(worker: WorkerOnCard, card: Card) -> None:
    kinds: list[str] = []

    def act(kind: str, data: dict[str, Any]) -> None:
        kinds.append(kind)
        if kind == "stage" and data["stage"] == "denoising" and "waiting_for_memory" not in kinds:
            card.leave(100 * MIB)  # less than an encode of which nothing is known yet may need
        elif kind == "waiting_for_memory":
            card.ballast_bytes = 0

    worker.store.act = act
    job = worker.run(**WAN)
    assert job.status is JobStatus.SUCCEEDED, job.error
    (waiting,) = worker.events(job.id, "waiting_for_memory")
    assert waiting.data["needed_bytes"] > waiting.data["free_bytes"]
    assert job.attempts == 1
