"""Leases that ran out while time jumped are not acted on before live workers could renew them."""

from collections.abc import Callable

import pytest

from app.jobs import JobSpec, JobStatus
from app.store import JobStore
from app.store.upkeep import expiry
from app.store.upkeep.expiry import JUMPS_IN_A_ROW, ExpiryWatch

LEASE, BEAT = 30.0, 5.0
EPOCH = 1_790_000_000.0


class Turns:
    """Looks of one process every two seconds; both clocks move by what each turn says."""

    def __init__(self) -> None:
        self.boot = 1000.0
        self.database = EPOCH
        self.watch = ExpiryWatch(BEAT, lease_seconds=LEASE, clock=lambda: self.boot)

    def turn(self, boot: float = 2.0, database: float = 2.0) -> bool:
        self.boot += boot
        self.database += database
        return self.watch.may_requeue(self.database)

    def calm(self) -> "Turns":
        for _ in range(10):
            self.turn()
        assert self.turn()
        return self


JUMPS = {
    "a suspended machine or stopped processes": (40.0, 40.0),
    "a database whose clock was set forward": (2.0, 3600.0),
    "a database whose clock was set back": (2.0, -3600.0),
    "a database that was suspended and has no clock of its own": (40.0, 2.0),
}


@pytest.mark.parametrize("name", JUMPS)
def test_after_a_jump_of_time_a_heartbeat_is_waited_for(name: str) -> None:
    turns = Turns().calm()
    assert [turns.turn(*JUMPS[name]), turns.turn(), turns.turn(), turns.turn()] == [False, False, False, True]


def test_turns_that_are_a_little_late_are_no_jump() -> None:
    turns = Turns().calm()
    assert all(turns.turn(seconds, seconds) for seconds in (2.0, 7.5, 14.0, 0.1))


def test_a_process_that_has_just_started_waits_for_a_heartbeat() -> None:
    assert [Turns().watch.may_requeue(EPOCH)] == [False]


def test_a_process_whose_turns_are_always_slow_acts_all_the_same() -> None:
    turns = Turns().calm()
    looks = [turns.turn(20.0, 20.0) for _ in range(JUMPS_IN_A_ROW + 1)]
    assert looks == [False] * JUMPS_IN_A_ROW + [True]


def test_time_since_boot_counts_on() -> None:
    assert expiry.since_boot() <= expiry.since_boot()


def test_a_worker_whose_lease_ran_out_while_all_was_suspended_goes_on(
    open_store: Callable[..., JobStore],
    make_spec: Callable[..., JobSpec],
    clock: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expiry, "since_boot", clock)
    monkeypatch.setattr(ExpiryWatch.__init__, "__kwdefaults__", {"clock": clock})
    api, supervisor = (open_store(heartbeat_seconds=BEAT, lease_seconds=LEASE) for _ in range(2))
    worker = open_store()

    def pass_by(seconds: float) -> list[str]:
        clock.now += seconds  # type: ignore[attr-defined]
        return [*api.requeue_expired(), *supervisor.requeue_expired()]

    job = api.add(make_spec(), b"x")
    claim = worker.claim("w", lease_seconds=LEASE)
    assert claim is not None
    for _ in range(4):
        assert pass_by(2) == []
    assert pass_by(33) == []
    beat = {"device": {"name": "cpu"}, "job_id": job.id, "token": claim.token, "lease_seconds": LEASE}
    assert not worker.heartbeat("w", **beat).lost
    for _ in range(10):
        assert pass_by(2) == []
    assert (api.get(job.id).status, api.get(job.id).attempts) == (JobStatus.RUNNING, 1)
    for _ in range(5):
        returned = pass_by(2)
    assert returned == [], "the renewed lease lasts for its time"
    assert [job_id for _ in range(5) for job_id in pass_by(2)] == [job.id], "a silent worker loses its job"
