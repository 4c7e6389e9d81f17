"""A worker on a card that has too little memory at the wrong moment, or breaks: no job is lost."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended import MIB, Card
from stream_vaes import build, latents_of
from worker_on_card import WorkerOnCard

from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.device.probe import AcceleratorProbe
from adaptive.errors import DecodeOutOfMemory
from app.jobs import Job, JobStatus
from app.pipelines import tiny
from app.worker.decoding import DeviceFault

StartWorker = Callable[..., WorkerOnCard]
FOUR_CHUNKS = {"decode_strategy": "per_frame"}  # of 33 frames: 5 latent frames, one at a time


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def start(tmp_path: Path, model: Path, device: str) -> Iterator[StartWorker]:
    started: list[WorkerOnCard] = []

    def start(**settings: Any) -> WorkerOnCard:
        started.append(WorkerOnCard(tmp_path / f"data{len(started)}", model, device, **settings))
        return started[-1]

    yield start
    for worker in started:
        worker.store.close()


def test_a_decode_whose_memory_is_taken_waits_and_continues(start: StartWorker, card: Card) -> None:
    worker = start()
    undisturbed = worker.run(**FOUR_CHUNKS)
    chunks: list[int] = []

    def act(kind: str, data: dict[str, Any]) -> None:
        if kind == "chunk":
            chunks.append(data["latent_frames"])
            if len(chunks) == 1:
                torch.cuda.empty_cache()
                card.leave(0)
        elif kind == "waiting_for_memory":
            card.ballast_bytes = 0

    worker.store.act = act
    job = worker.run(**FOUR_CHUNKS)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert (job.attempts, sum(chunks)) == (1, 5)
    (waiting,) = worker.events(job.id, "waiting_for_memory")
    assert waiting.data["needed_bytes"] > waiting.data["free_bytes"]
    assert worker.video(job) == worker.video(undisturbed)


def test_a_decode_whose_memory_stays_taken_goes_back_to_the_queue_with_its_latents(
    start: StartWorker, card: Card
) -> None:
    worker = start(memory_wait_seconds=0.2)

    def act(kind: str, data: dict[str, Any]) -> None:
        if kind == "chunk" and data["position"] == 1:
            torch.cuda.empty_cache()
            card.leave(0)

    worker.store.act = act
    job = worker.run(**FOUR_CHUNKS)
    assert job.status is JobStatus.QUEUED, job.error
    (requeued,) = worker.events(job.id, "requeued")
    assert requeued.data["reason"] == "memory_taken"
    worker.store.act = lambda _kind, _data: None
    card.ballast_bytes = 0
    job = worker.run_next()
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert len(worker.events(job.id, "denoised")) == 1
    assert len(worker.events(job.id, "resumed_from_latents")) == 1


def test_the_last_attempt_says_how_much_memory_was_missing(start: StartWorker, card: Card) -> None:
    worker = start(memory_wait_seconds=0.2, max_attempts=1)

    def act(kind: str, _data: dict[str, Any]) -> None:
        if kind == "chunk":
            torch.cuda.empty_cache()
            card.leave(0)

    worker.store.act = act
    job = worker.run(**FOUR_CHUNKS)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "out_of_memory"
    assert job.error["data"]["needed_bytes"] > job.error["data"]["free_bytes"]


def test_a_denoise_goes_on_at_the_call_that_failed(start: StartWorker, card: Card) -> None:
    worker = start()
    undisturbed = worker.run(**FOUR_CHUNKS, num_inference_steps=3)

    def act(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress" and data.get("step"):
            card.fail_in = 3

    worker.store.act = act
    job = worker.run(**FOUR_CHUNKS, num_inference_steps=3)
    assert worker.video(job) == worker.video(undisturbed)
    assert job.denoise is not None
    assert {each["to"] for each in job.denoise["fallbacks"]} == {"released_caches"}
    assert job.denoise["same_arithmetic"] is True


def test_a_denoise_steps_down_where_a_neighbour_takes_memory_between_steps(
    start: StartWorker, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.worker.job.reports._PROGRESS_EVERY_SECONDS", 0.0)
    worker = start(memory_wait_seconds=0.2)
    # Large enough that no step fits into what the allocator holds for small tensors.
    larger = {**FOUR_CHUNKS, "num_inference_steps": 3, "width": 256, "height": 256, "num_frames": 17}
    undisturbed = worker.run(**larger)
    taken: list[str] = []

    def act(kind: str, data: dict[str, Any]) -> None:
        if data.get("stage") == "decoding":
            card.ballast_bytes = 0
        elif kind == "progress" and data.get("step") == 1 and not taken:
            taken.append(kind)
            torch.cuda.empty_cache()
            card.leave(0)

    worker.store.act = act
    job = worker.run(**larger)
    assert worker.video(job) == worker.video(undisturbed)
    steps = [event.data["to"] for event in worker.events(job.id, "denoise_fallback")]
    assert steps[:2] == ["released_caches", "drop_text_encoder"]


def test_a_denoise_that_nothing_helps_takes_every_step_down_and_says_what_was_missing(
    start: StartWorker, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.worker.job.reports._PROGRESS_EVERY_SECONDS", 0.0)
    worker = start(memory_wait_seconds=0.2)

    def act(kind: str, data: dict[str, Any]) -> None:
        if kind == "denoise_fallback" or (kind == "progress" and data.get("step") == 1):
            card.fail_in = 0

    worker.store.act = act
    job = worker.run(**FOUR_CHUNKS, num_inference_steps=3)
    steps = [event.data["to"] for event in worker.events(job.id, "denoise_fallback")]
    assert steps[:2] == ["released_caches", "drop_text_encoder"]
    assert steps[-1] == "group_offload"
    assert job.error is not None
    assert job.error["code"] == "out_of_memory"
    assert "Tried to allocate" in job.error["message"]
    assert job.error["data"]["needed_bytes"] > 0
    assert job.error["data"]["free_bytes"] > 0
    assert len(worker.events(job.id, "oom")) == len(steps) + 1
    worker.store.act = lambda _kind, _data: None
    card.fail_in = -1
    assert worker.run(**FOUR_CHUNKS).status is JobStatus.SUCCEEDED


@torch.no_grad()
def test_nothing_larger_than_what_is_free_is_tried(card: Card, device: str) -> None:
    vae = build("ltx-0.9.0").to(device)
    latents = latents_of(vae, 6).to(device)
    tried: list[int] = []

    def act(event: Any) -> None:
        if event.kind == "chunk":
            torch.cuda.empty_cache()
            card.leave(0)
        elif event.kind == "oom":
            tried.append(event.data["frames_per_chunk"])

    decoder = AdaptiveDecoder(vae, on_event=act)
    plan = replace(decoder.plan(latents), frames_per_chunk=2)
    with pytest.raises(DecodeOutOfMemory) as failed:
        list(decoder.frames(latents, resume_plan=plan))
    assert max(tried) <= 2, tried
    assert failed.value.needed_bytes > failed.value.free_bytes


BREAKS: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "load": lambda kind, data: data["stage"] == "loading" and kind == "stage",
    "loaded": lambda kind, _data: kind == "loaded",
    "denoise": lambda kind, data: data["stage"] == "denoising" and kind == "stage",
    "previews": lambda kind, data: data["stage"] == "decoding" and kind == "stage",
    "transfer": lambda kind, data: kind == "chunk" and data["video_frames"] > 0,
}


@pytest.mark.parametrize("moment", BREAKS)
def test_a_fault_of_the_card_ends_the_process_and_not_the_job(
    moment: str, start: StartWorker, card: Card
) -> None:
    worker = start()

    def act(kind: str, data: dict[str, Any]) -> None:
        card.fault = card.fault or BREAKS[moment](kind, data)

    worker.store.act = act
    job_id = worker.add(**FOUR_CHUNKS)
    with pytest.raises(DeviceFault, match="illegal memory access"):
        worker.run_next()
    assert worker.store.get(job_id).status is JobStatus.RUNNING  # until the supervisor requeues it


def _succeeds_when_an_allocation_fails(
    worker: WorkerOnCard, card: Card, moment: Callable[[str, dict[str, Any]], bool], **fields: Any
) -> Job:
    undisturbed = worker.run(**FOUR_CHUNKS, **fields)

    def act(kind: str, data: dict[str, Any]) -> None:
        if moment(kind, data):
            card.fail_in = 0

    worker.store.act = act
    job = worker.run(**FOUR_CHUNKS, **fields)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert card.fail_in == -1, "no allocation has failed"
    assert worker.video(job) == worker.video(undisturbed)
    assert job.decode is not None
    assert job.decode["retries"] == 0, "it was not the decode's own allocation"
    return job


def test_memory_that_is_missing_at_load_is_waited_for(start: StartWorker, card: Card) -> None:
    worker = start()
    card.fail_in = 20
    job = worker.run()
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempts == 1
    assert card.fail_in == -1
    (waiting,) = worker.events(job.id, "waiting_for_memory")
    assert waiting.data["needed_bytes"] > 0
    assert len(worker.events(job.id, "loaded")) == 1


def test_memory_that_is_missing_for_a_thumbnail_leaves_it_out(start: StartWorker, card: Card) -> None:
    first = lambda kind, data: kind == "chunk" and data["video_frames_done"] == data["video_frames"] > 0  # noqa: E731
    job = _succeeds_when_an_allocation_fails(start(), card, first)
    assert job.result is not None
    assert job.result["thumbnail"] is False


def test_memory_that_is_missing_in_the_transfer_splits_it(start: StartWorker, card: Card) -> None:
    later = lambda kind, data: kind == "chunk" and data["video_frames_done"] > data["video_frames"] > 0  # noqa: E731
    _succeeds_when_an_allocation_fails(start(), card, later)


def test_memory_that_is_missing_for_previews_leaves_them_out(start: StartWorker, card: Card) -> None:
    seen: list[str] = []  # of the second job

    def second_stage(kind: str, data: dict[str, Any]) -> bool:
        seen.append(f"{kind} {data['stage']}")
        return seen[-1] == "stage decoding" and seen.count("stage decoding") == 2

    worker = start()
    job = _succeeds_when_an_allocation_fails(worker, card, second_stage, width=256, height=256, num_frames=17)
    assert worker.events(job.id, "preview") == []


def test_a_job_that_only_a_card_without_our_own_context_could_hold_is_not_claimed(
    start: StartWorker, card: Card
) -> None:
    worker = start()
    worker.run()
    reading = worker.engine._probe.read()
    assert reading.context_bytes == card.context_bytes > 0
    all_free = card.capacity_bytes - card.context_bytes - worker.settings.reserve_bytes
    assert worker.engine.most_bytes == all_free
    vae = worker.engine._model
    assert vae is not None
    assert worker.engine.capacity_bytes == all_free - vae.vae_weight_bytes
    assert worker.engine.device_report()["capacity_bytes"] == worker.engine.capacity_bytes


def test_a_calibration_that_does_not_fit_is_skipped(start: StartWorker, card: Card) -> None:
    card.capacity_bytes = 340 * MIB
    worker = start(calibrate_seconds=0.5, memory_wait_seconds=2)
    job = worker.run(num_frames=9)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert len(worker.events(job.id, "loaded")) == 1


def test_what_a_neighbour_takes_is_not_learned_where_the_driver_has_no_figures(card: Card) -> None:
    card.hides_processes = 1
    probe = AcceleratorProbe(torch.device("cuda", 0))
    probe.reset_peak()
    card.ballast_bytes = 300 * MIB
    peak = probe.peak()
    assert peak is not None
    assert peak.outside_bytes == 0
