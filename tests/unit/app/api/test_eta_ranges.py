"""The range in which a job is expected to be done: learned by stage from jobs of its shape."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient
from waiting import wait_for

from app.jobs import Event, JobStatus, Stage
from app.scheduling.eta import RunTimes
from app.scheduling.stage_times import Seconds, loading_range, remaining_range, stage_ranges, widened
from app.store import JobStore

SMALL = {"model": "tiny", "width": 256, "height": 256, "num_frames": 17}
LARGE = {**SMALL, "num_frames": 25}
DURATIONS = {"loading": 0.1, "denoising": 10.0, "decoding": 2.0, "encoding": 0.5}
Work = Callable[..., None]


@pytest.fixture
def work(client: TestClient, app_store: JobStore, submit: Any) -> Work:
    """Does a job of these fields, in these seconds by stage, on the one device."""
    app_store.register_worker("w", {"name": "cpu", "kind": "cpu", "loaded_model": "tiny"})
    run_times: RunTimes = client.app.state.service.waiting_times.run_times  # type: ignore[attr-defined]

    def run(fields: dict[str, Any], resumed_from: int = 0, **durations: float) -> None:
        submit(**fields)
        claim = app_store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=60)
        assert claim is not None
        sizes = {"frames": fields["num_frames"], "width": fields["width"], "height": fields["height"]}
        steps = claim.job.spec.num_inference_steps
        denoise = {"steps": steps, "steps_computed": steps - resumed_from, "resumed_from_step": resumed_from}
        app_store.checkpoint(claim.job.id, claim.token, "latents", denoise)
        taken = {name: seconds for name, seconds in {**DURATIONS, **durations}.items() if seconds}
        done = {"durations": taken, "result": sizes}
        learned = len(run_times.taken("tiny"))
        app_store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, **done)
        wait_for(lambda: len(run_times.taken("tiny")) > learned, 60.0)

    return run


def planned(client: TestClient, fields: dict[str, Any]) -> Any:
    return client.post("/plan", json=fields).json()["eta_range"]


def test_no_range_is_told_before_the_first_job_of_a_shape(
    client: TestClient, work: Work, submit: Any
) -> None:
    assert planned(client, SMALL) is None
    work(SMALL)
    assert planned(client, LARGE) is None, "of another shape nothing is known"
    once = planned(client, SMALL)
    assert once["low_seconds"] < 12.5 < once["high_seconds"]
    work(SMALL, denoising=11.0)
    work(SMALL, denoising=10.5)
    work(LARGE, denoising=40.0, decoding=9.0)
    often = planned(client, SMALL)
    assert once["low_seconds"] < often["low_seconds"] < 12.5 < 13.5 < often["high_seconds"] < 20
    assert planned(client, LARGE)["low_seconds"] > often["high_seconds"], "shapes do not mix"
    waiting = submit(**SMALL)
    assert waiting["eta_range"] == often


def test_a_running_job_counts_the_stages_that_are_left(
    client: TestClient, app_store: JobStore, work: Work, submit: Any
) -> None:
    work(SMALL)
    job_id = submit(**SMALL)["id"]
    claim = app_store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=60)
    assert claim is not None

    def left(stage: Stage, progress: float) -> tuple[float, float]:
        app_store.progress(job_id, claim.token, stage=stage, progress=progress)
        told = client.get(f"/jobs/{job_id}").json()["eta_range"]
        return told["low_seconds"], told["high_seconds"]

    low, high = left(Stage.DENOISING, 0.02)
    assert low < 12.5 < high
    low, high = left(Stage.DENOISING, 0.41)  # half of its steps
    assert low < 5.0 + 2.5 < high < 11
    low, high = left(Stage.DECODING, 0.8)
    assert low < 2.5 < high < 4, "the steps are done"
    low, high = left(Stage.ENCODING, 0.97)
    assert low < 0.5 < high < 1
    behind = submit(**SMALL)["eta_range"]
    assert behind["low_seconds"] < 13.0 < behind["high_seconds"]
    app_store.progress(job_id, claim.token, stage=Stage.DENOISING, progress=0.02)
    unknown = submit(**LARGE)
    assert unknown["eta_range"] is None
    app_store.progress(job_id, claim.token, stage=Stage.WAITING_FOR_MEMORY, progress=0.5)
    assert client.get(f"/jobs/{job_id}").json()["eta_range"] is None, "nobody knows when memory is free"
    assert planned(client, SMALL) is None


@pytest.mark.parametrize("seconds_left", [None, 100.0])
def test_a_download_counts_with_the_time_that_it_still_takes(
    seconds_left: float | None, app_store: JobStore, submit: Any
) -> None:
    ranges = (Seconds(9, 11), Seconds(1, 3), Seconds(0, 1))
    job = replace(
        app_store.get(submit(**SMALL)["id"]), stage=Stage.DOWNLOADING, download={"seconds_left": seconds_left}
    )
    left = remaining_range(job, ranges, Seconds(4, 6))
    if seconds_left is None:
        assert left is None
    else:
        assert left is not None
        assert left.low < 114 < 121 < left.high


@pytest.mark.parametrize("seconds_left", [None, 100.0])
def test_no_time_forgets_the_download_of_a_running_job(
    client: TestClient, app_store: JobStore, work: Work, submit: Any, seconds_left: float | None
) -> None:
    work(SMALL)
    job_id = submit(**SMALL)["id"]
    claim = app_store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=60)
    assert claim is not None
    told = {"done_bytes": 1, "total_bytes": 10, "bytes_per_second": None, "seconds_left": seconds_left}
    app_store.progress(job_id, claim.token, stage=Stage.DOWNLOADING, progress=0.0, data={"download": told})
    running, behind = client.get(f"/jobs/{job_id}").json(), submit(**SMALL)
    if seconds_left is None:
        found = [job[name] for job in (running, behind) for name in ("eta_seconds", "eta_range")]
        assert found == [None] * 4, "nobody knows how long it downloads"
    else:
        assert running["eta_seconds"] == pytest.approx(112.6)
        assert behind["eta_seconds"] == pytest.approx(125.2)
        assert running["eta_range"]["low_seconds"] < 112.6 < running["eta_range"]["high_seconds"]
        assert behind["eta_range"]["low_seconds"] < 125.2 < behind["eta_range"]["high_seconds"]
    app_store.register_worker("idle", {"name": "cpu", "kind": "cpu", "loaded_model": "tiny"})
    assert submit(**SMALL)["eta_seconds"] == pytest.approx(25.2), "another device takes it"
    app_store.finish(job_id, claim.token, status=JobStatus.CANCELED)
    assert client.post(f"/jobs/{job_id}/retry").json()["download"] is None, "that download is over"


def test_loading_the_model_counts_only_where_it_is_not_loaded(
    client: TestClient, app_store: JobStore, work: Work
) -> None:
    work(SMALL, loading=30.0)
    assert planned(client, SMALL)["high_seconds"] < 20
    app_store.register_worker("w", {"name": "cpu", "kind": "cpu", "loaded_model": None})
    assert planned(client, SMALL)["low_seconds"] > 20


def test_a_range_follows_the_number_of_steps(client: TestClient, work: Work) -> None:
    work({**SMALL, "num_inference_steps": 2}, denoising=2.0)
    few = planned(client, {**SMALL, "num_inference_steps": 2})
    many = planned(client, {**SMALL, "num_inference_steps": 8})
    assert few["low_seconds"] < 2.0 + 2.5 < few["high_seconds"]
    assert many["low_seconds"] < 8.0 + 2.5 < many["high_seconds"]
    assert many["low_seconds"] > few["high_seconds"]
    work({**SMALL, "num_inference_steps": 8}, denoising=5.0)
    assert planned(client, {**SMALL, "num_inference_steps": 8})["high_seconds"] < 12, "of 8 steps it is known"


def test_an_attempt_that_resumed_or_only_decoded_is_not_learned_as_a_whole_job(
    client: TestClient, work: Work, submit: Any
) -> None:
    fields = {**SMALL, "num_inference_steps": 8}
    work(fields, resumed_from=6, denoising=2.5)
    first = planned(client, fields)
    assert first["low_seconds"] < 10.0 + 2.5 < first["high_seconds"], "as many steps as it computed"
    assert submit(**fields)["eta_seconds"] == pytest.approx(12.6)
    client.delete("/jobs/" + client.get("/jobs").json()["jobs"][0]["id"])
    work(fields)
    whole = planned(client, fields)
    for _ in range(3):
        work(fields, resumed_from=8, denoising=0.1)
        work(fields, resumed_from=7, denoising=0.2)
        work(fields, denoising=0.0)
    assert planned(client, fields) == whole
    assert submit(**fields)["eta_seconds"] == pytest.approx(12.6)


def test_a_job_that_gave_way_counts_the_steps_that_are_left(
    client: TestClient, app_store: JobStore, work: Work, submit: Any
) -> None:
    fields = {**SMALL, "num_inference_steps": 8}
    work(fields)
    low = submit(**fields)["id"]
    claim = app_store.claim("w", models=None, loaded_model=None, capacity_bytes=None, lease_seconds=60)
    assert claim is not None
    urgent = submit(**fields, priority=5)["id"]
    taking = app_store.preempt(low, claim.token, "w", by=urgent, step=6, steps=8)
    assert taking is not None
    app_store.finish(urgent, taking.token, status=JobStatus.CANCELED)
    left = client.get(f"/jobs/{low}").json()["eta_range"]
    assert left["low_seconds"] < 2.5 + 2.5 < left["high_seconds"] < 12.5


@pytest.mark.parametrize("stored", [[12.0, 2.0, 9.0], [12.0, 2.0, 9.0, 0.1, "256x256x17"]])
def test_a_kept_state_without_steps_is_read(stored: list[Any]) -> None:
    times = RunTimes()
    times.restore({"tiny": [stored]})
    expected = times.expected("tiny")
    assert expected is not None
    assert (expected.seconds, expected.decode_seconds, expected.denoise_seconds) == (12.0, 2.0, 9.0)
    assert stage_ranges(times.taken("tiny"), "256x256x17", 8) is None, "of how many steps is not known"
    again = RunTimes()
    again.restore(times.state())
    assert again.taken("tiny") == times.taken("tiny")


def test_a_kept_state_of_an_earlier_version_is_read_and_tells_no_range() -> None:
    old, new = RunTimes(), RunTimes()
    old.restore({"tiny": [[12.0, 2.0, 10.0]]})
    assert stage_ranges(old.taken("tiny"), "256x256x17", 1) is None
    assert old.expected("tiny") is not None
    old.apply([finished(random.Random(1), "256x256x17", 10.0, 1)])
    new.restore(old.state())
    assert new.taken("tiny") == old.taken("tiny")


def finished(chance: random.Random, shape: str, seconds: float, seq: int) -> Event:
    """The end of a job of that shape, whose stages take up to a third more or less than usual."""
    width, height, frames = map(int, shape.split("x"))
    spread = [chance.lognormvariate(0.0, 0.12) for _ in range(3)]
    durations = {
        "loading": 20.0 if seq % 20 == 1 else 0.05,
        "denoising": 0.8 * seconds * spread[0],
        "decoding": 0.15 * seconds * spread[1],
        "encoding": 0.05 * seconds * spread[2],
    }
    video = {"width": width, "height": height, "frames": frames}
    denoise = {"steps": 8, "steps_computed": 8, "resumed_from_step": 0}
    data = {
        "outcome": "succeeded",
        "model": "tiny",
        "durations": durations,
        "video": video,
        "denoise": denoise,
    }
    return Event(seq, f"job-{seq}", "finished", 0.0, data)


def test_most_of_sixty_jobs_of_three_shapes_end_in_their_range() -> None:
    shapes = {"256x256x17": 4.0, "512x320x33": 22.0, "768x512x97": 90.0}
    for seed in range(20):
        chance, run_times, hits, told = random.Random(seed), RunTimes(), 0, 0
        for seq in range(1, 61):
            shape = chance.choice(list(shapes))
            taken = run_times.taken("tiny")
            ranges = stage_ranges(taken, shape, 8)
            event = finished(chance, shape, shapes[shape], seq)
            if ranges is not None:
                loads = event.data["durations"]["loading"] > 1
                loading = loading_range(taken) if loads else Seconds(0.0, 0.0)
                whole = loading + ranges[0] + ranges[1] + ranges[2]
                told += 1
                hits += whole.low <= sum(event.data["durations"].values()) <= whole.high
            run_times.apply([event])
        assert told == 57, "all but the first of each shape"
        assert hits >= 0.8 * told


def test_a_range_of_more_jobs_is_narrower_and_holds_them_all() -> None:
    one, four = widened([10.0]), widened([10.0, 10.0, 10.0, 10.0])
    assert one.low < four.low < 10 < four.high < one.high
