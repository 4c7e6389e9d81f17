"""Denoised jobs in the queue: who takes them, who gives them back, and what is known of them meanwhile."""

from collections.abc import Callable
from typing import Any

import pytest

from app.jobs import Claim, JobSpec, JobStatus, Stage
from app.store import JobStore
from app.store.roles.parts import DENOISED_ONLY, Part, Share
from app.store.roles.waiting import Decode, NextDenoises

IMAGE = b"\xff\xd8 a picture"
MakeSpec = Callable[..., JobSpec]
MODELS = ["tiny", "another"]
LEFT = Part(Share.NOT_LEFT, ("tiny",), 50)
DATA = {"to": "b", "decode_seconds": 4.0, "decode_seconds_here": 5.0}


def claimed(store: JobStore, worker: str = "a", **wanted: Any) -> Claim | None:
    return store.claim(worker, **{"models": MODELS, **wanted})


def handed(store: JobStore, make_spec: MakeSpec, **fields: Any) -> str:
    """The id of a job that worker a has denoised and handed over."""
    needed_bytes = fields.pop("needed_bytes", None)
    job_id = store.add(make_spec(**{"priority": 9, **fields}), IMAGE, needed_bytes=needed_bytes).id
    claim = claimed(store, part=Part(Share.NOT_LEFT, tuple(MODELS), 2**60))
    assert claim is not None
    assert claim.job.id == job_id
    assert store.checkpoint(job_id, claim.token, "jobs/x/latents.safetensors", {"seconds": 6.0, "steps": 4})
    assert store.hand_over(job_id, claim.token, data=DATA, durations={"denoising": 6.0})
    assert not store.hand_over(job_id, claim.token, data=DATA, durations={}), "once"
    return job_id


@pytest.mark.parametrize("models", [MODELS, None])
def test_each_worker_takes_its_part_of_the_queue(
    store: JobStore, make_spec: MakeSpec, models: list[str] | None
) -> None:
    denoised = handed(store, make_spec)
    plain = store.add(make_spec(), IMAGE).id
    store.register_worker("a", {"name": "cpu"})
    store.register_worker("b", {"name": "cpu"})
    left = claimed(store, "a", models=models, part=LEFT)
    assert left is not None
    assert left.job.id == plain, "the first in the queue is left to the other"
    assert claimed(store, "a", models=models, part=LEFT) is None
    taken = claimed(store, "b", models=models, part=DENOISED_ONLY, loaded_model="another")
    assert taken is not None
    assert (taken.job.id, taken.job.stage, taken.job.attempts) == (denoised, Stage.LOADING, 1)
    assert claimed(store, "b", models=models, part=DENOISED_ONLY) is None


def test_what_others_cannot_decode_is_not_left_to_them(store: JobStore, make_spec: MakeSpec) -> None:
    large = handed(store, make_spec, needed_bytes=51)
    strange = handed(store, make_spec, model="another")
    assert claimed(store, "b", part=DENOISED_ONLY, capacity_bytes=50, models=["tiny"]) is None
    taken = [claimed(store, "a", part=LEFT), claimed(store, "a", part=LEFT)]
    assert {claim.job.id for claim in taken if claim} == {large, strange}


def test_a_loaded_model_goes_first_in_each_part(store: JobStore, make_spec: MakeSpec) -> None:
    first = handed(store, make_spec)
    preferred = handed(store, make_spec, model="another")
    for worker in ("b", "c"):
        claim = claimed(store, worker, part=DENOISED_ONLY, loaded_model="another")
        assert claim is not None
        assert claim.job.id == (preferred if worker == "b" else first)


def test_a_handed_over_job_keeps_its_place_and_waits_as_denoised(
    store: JobStore, make_spec: MakeSpec
) -> None:
    job_id = handed(store, make_spec)
    job = store.get(job_id)
    state = (job.status, job.stage, job.progress, job.attempts, job.queue_position)
    assert state == (JobStatus.QUEUED, Stage.DENOISED, 0.8, 0, 1)
    assert job.handover == {"from": "a", **DATA, "durations": {"denoising": 6.0}}
    kinds = [event.kind for event in store.events_after(0, job_id=job_id)]
    assert kinds[-3:] == ["denoised", "handed_over", "requeued"]
    claim = claimed(store, "b", part=DENOISED_ONLY)
    assert claim is not None
    assert store.release(job_id, claim.token, "worker_killed")
    assert store.get(job_id).stage is Stage.DENOISED, "it still waits for a decode"
    again = claimed(store, "b", part=DENOISED_ONLY)
    assert again is not None
    assert store.finish(job_id, again.token, status=JobStatus.SUCCEEDED, durations={"decoding": 4.0})
    data = store.events_after(0, job_id=job_id)[-1].data
    assert (data["durations"], data["earlier_durations"]) == ({"decoding": 4.0}, {"denoising": 6.0})
    assert data["denoise"]["steps"] == 4


@pytest.mark.parametrize("denoise_again", [False, True])
def test_what_a_decoder_gives_back_is_for_those_that_denoise(
    store: JobStore, make_spec: MakeSpec, denoise_again: bool
) -> None:
    job_id = handed(store, make_spec)
    claim = claimed(store, "b", part=DENOISED_ONLY)
    assert claim is not None
    data = {"reason": "does_not_fit"}
    assert store.give_decode_back(job_id, claim.token, data=data, denoise_again=denoise_again)
    assert not store.give_decode_back(job_id, claim.token, data=data, denoise_again=denoise_again)
    job = store.get(job_id)
    assert (job.stage, job.kept_from_decoders, job.latents_path is None) == ("queued", True, denoise_again)
    assert claimed(store, "b", part=DENOISED_ONLY) is None
    taken = claimed(store, "a", part=LEFT)
    assert taken is not None
    store.finish(job_id, taken.token, status=JobStatus.CANCELED)
    store.queue_again(job_id, why="retry")
    again = store.get(job_id)
    assert (again.kept_from_decoders, again.handover) == (False, None)


def test_a_canceled_job_ends_instead_of_being_handed_over(store: JobStore, make_spec: MakeSpec) -> None:
    job_id = store.add(make_spec(), IMAGE).id
    claim = claimed(store)
    assert claim is not None
    store.checkpoint(job_id, claim.token, "latents", {})
    store.cancel(job_id)
    assert store.hand_over(job_id, claim.token, data=DATA, durations={})
    assert store.get(job_id).status is JobStatus.CANCELED


def test_the_decodes_before_a_job_and_the_jobs_that_wait_are_known(
    store: JobStore, make_spec: MakeSpec
) -> None:
    handed(store, make_spec)
    handed(store, make_spec, priority=8)
    claim = claimed(store, "b", part=DENOISED_ONLY)
    assert claim is not None
    assert store.progress(claim.job.id, claim.token, stage=Stage.DECODING, progress=0.885)
    running, waiting = store.decodes()
    assert (running.worker_id, round(running.left, 3), running.seconds) == ("b", 0.5, 4.0)
    assert waiting == Decode(None, 1.0, 4.0, "tiny", 5.0)
    asked = {"models": MODELS, "capacity_bytes": 50}
    assert store.next_denoises(**asked) == NextDenoises(0)
    store.add(make_spec(), IMAGE, plan={"denoise_seconds": 7.5}, needed_bytes=50)
    store.add(make_spec(), IMAGE, needed_bytes=51)
    store.add(make_spec(), IMAGE)
    assert store.next_denoises(**asked) == NextDenoises(2, 7.5)


def test_a_denoised_job_does_not_take_a_device_that_leaves_it_to_others(
    store: JobStore, make_spec: MakeSpec
) -> None:
    denoised = handed(store, make_spec, needed_bytes=50)
    asked = {"models": MODELS, "capacity_bytes": 50}
    found = store.urgent(0, **asked)
    assert found is not None
    assert (found.id, found.is_denoised) == (denoised, True)
    assert store.urgent(0, **asked, part=LEFT) is None
    plain = store.add(make_spec(priority=10), IMAGE, needed_bytes=10).id
    waits = claimed(store, "a", part=LEFT)
    assert waits is not None
    assert waits.job.id == plain
    store.add(make_spec(), IMAGE)
    room = {"model": "tiny", "room_bytes": 50}
    assert store.yield_to_smaller(plain, waits.token, "a", **room, part=LEFT) is None
    smaller = store.yield_to_smaller(plain, waits.token, "a", **room)
    assert smaller is not None
    assert smaller.job.id == denoised
