"""Interrupting a job, and waiting for memory within bounds."""

import threading
import time

import pytest

from adaptive.errors import DoesNotFit
from app.worker.job.control import JobCanceled, JobControl, JobLost, WorkerStopping, wait_for_memory


def refusal(needed: int) -> DoesNotFit:
    return DoesNotFit("decoding", needed_bytes=needed, budget_bytes=10)


class Device:
    """Refuses so many times, then fits."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.asked = 0

    def attempt(self) -> str:
        self.asked += 1
        if self.asked <= self.refusals:
            raise refusal(20)
        return "fits"


def wait(
    device: Device,
    told: list[DoesNotFit],
    control: JobControl | None = None,
    *,
    limit: float,
    may: bool = True,
) -> str:
    return wait_for_memory(
        device.attempt,
        control or JobControl(),
        limit_seconds=limit,
        may_fit_later=lambda _refusal: may,
        on_wait=told.append,
    )


def test_what_fits_is_not_waited_for() -> None:
    told: list[DoesNotFit] = []
    assert wait(Device(0), told, limit=0) == "fits"
    assert told == []


def test_freed_memory_is_used_and_the_wait_is_reported_once() -> None:
    told: list[DoesNotFit] = []
    assert wait(Device(2), told, limit=60) == "fits"
    assert [each.needed_bytes for each in told] == [20]


@pytest.mark.parametrize(("limit", "may", "told_times"), [(0.0, True, 1), (60.0, False, 0)])
def test_a_refusal_is_final_where_time_is_up_or_waiting_is_hopeless(
    limit: float, may: bool, told_times: int
) -> None:
    told: list[DoesNotFit] = []
    with pytest.raises(DoesNotFit):
        wait(Device(1000), told, limit=limit, may=may)
    assert len(told) == told_times


def test_a_waiting_job_is_asked_to_make_way_only_after_some_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.worker.job.control.MEMORY_POLL_SECONDS", 0.01)
    monkeypatch.setattr("app.worker.job.control.PATIENCE_SECONDS", 0.1)
    began, asked = time.monotonic(), []

    def yield_to_smaller() -> None:
        asked.append(time.monotonic() - began)
        raise JobLost

    with pytest.raises(JobLost):
        wait_for_memory(
            Device(1000).attempt,
            JobControl(),
            limit_seconds=600,
            may_fit_later=lambda _refusal: True,
            on_wait=lambda _refusal: None,
            yield_to_smaller=yield_to_smaller,
        )
    assert len(asked) == 1
    assert asked[0] >= 0.1


def test_a_cancellation_ends_the_wait_at_once() -> None:
    control = JobControl()
    started = time.monotonic()
    threading.Timer(0.1, control.interrupt, [JobCanceled]).start()
    with pytest.raises(JobCanceled):
        wait(Device(1000), [], control, limit=600)
    assert time.monotonic() - started < 60


def test_the_first_reason_to_stop_counts() -> None:
    control = JobControl()
    control.check()
    control.interrupt(JobLost)
    control.interrupt(WorkerStopping)
    with pytest.raises(JobLost):
        control.check()
