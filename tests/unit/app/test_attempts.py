"""The rule of attempts, as tables: each row tells the ends of a job's attempts and what became of the job."""

import json

import pytest

from app.attempts import DENOISED, LOSSES_PER_ATTEMPT, Setbacks, Stop, Verdict, description, judge

CAP = 3
A, L, H, F = Verdict.AGAIN, Verdict.LATER, Verdict.HELD, Verdict.FAILED
MANY = LOSSES_PER_ATTEMPT * CAP


def told(ends: list[object]) -> list[Verdict]:
    """The verdict on each end: a reason, a stop of the service, or durable progress, which has none."""
    setbacks, verdicts = Setbacks(), []
    for end in ends:
        if isinstance(end, float):
            setbacks = setbacks.after_progress(end)
            continue
        stop = end if isinstance(end, Stop) else None
        reason = "service_restarted" if stop else str(end)
        setbacks = Setbacks.of(json.loads(json.dumps(setbacks.as_json())))  # as the table keeps it
        setbacks, verdict = judge(setbacks, reason, max_attempts=CAP, stop=stop)
        verdicts.append(verdict)
    return verdicts


def stops(*numbers: int, of: str = "a") -> list[object]:
    return [Stop(of, number) for number in numbers]


CRASH, OOM, KILL = "worker_crashed", "out_of_memory_killer", "worker_killed"
TABLE = {
    "a job that ends its worker each time is held and then fails": ([CRASH] * 4, [A, L, H, F]),
    "the out-of-memory killer and a hang count as crashes do": (
        [OOM, "worker_stalled", OOM, CRASH],
        [A, L, H, F],
    ),
    "signals from outside cost nothing": ([KILL] * 6, [A] * 6),
    "expired leases and lost databases cost nothing": (
        ["lease_expired", "database_unavailable"] * 3,
        [A] * 6,
    ),
    "orderly ends never count": (["worker_stopped", "made_way_for_a_smaller_job"] * 20, [A] * 40),
    "memory that others take is bounded elsewhere": (["memory_taken"] * 6, [A] * 6),
    "very many ends by others count in the end": ([KILL] * (MANY + 1), [A] * (MANY - 1) + [H, F]),
    "one unclean stop of the service costs nothing": ([CRASH, *stops(1), CRASH], [A, A, L]),
    "stops in a row with the same job count all": (stops(1, 2, 3, 4), [A, A, H, F]),
    "a stop without the job in between begins anew": (stops(1, 2, 4, 5, 7, 8), [A] * 6),
    "stops of two services are no row": ([*stops(1), *stops(2, of="b"), *stops(3)], [A] * 3),
    "a held job is not failed by what is nobody's fault": (
        [CRASH] * 3 + [KILL, "worker_stopped", *stops(7), "lease_expired", CRASH],
        [A, L, H, H, H, H, H, F],
    ),
    "progress beyond all earlier attempts sets all to zero": (
        [CRASH, CRASH, DENOISED, CRASH, CRASH, CRASH, CRASH],
        [A, L, A, L, H, F],
    ),
    "a held job that gets further is like any other": ([CRASH] * 3 + [DENOISED, CRASH], [A, L, H, A]),
    "the same progress again changes nothing": (
        [DENOISED, CRASH, DENOISED, CRASH, DENOISED, CRASH, DENOISED, CRASH],
        [A, L, H, F],
    ),
    "later checkpoints each count as progress": (
        [0.2, CRASH, CRASH, 0.4, CRASH, CRASH, 0.3, CRASH],
        [A, L, A, L, H],
    ),
    "an unknown reason is the job's": (["nobody knows"] * 4, [A, L, H, F]),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_ends_of_attempts_decide_what_becomes_of_a_job(name: str) -> None:
    ends, verdicts = TABLE[name]
    assert told(ends) == verdicts


def test_a_refunded_end_never_counts() -> None:
    assert judge(Setbacks(deaths=2), CRASH, max_attempts=CAP, refund=True) == (Setbacks(deaths=2), A)


def test_with_a_cap_of_one_a_job_is_still_tried_once_more_alone() -> None:
    setbacks, first = judge(Setbacks(), CRASH, max_attempts=1)
    assert (first, judge(setbacks, CRASH, max_attempts=1)[1]) == (H, F)


def test_setbacks_that_another_version_stored_are_read_as_far_as_they_are_known() -> None:
    assert Setbacks.of({"deaths": 2, "of a later version": 1}) == Setbacks(deaths=2)
    assert Setbacks.of(None) == Setbacks()


@pytest.mark.parametrize(
    ("setbacks", "expected"),
    [
        (Setbacks(deaths=1), "its worker process died once"),
        (Setbacks(deaths=2, stops=1, losses=1), "its worker process died 2 times, "
         "its worker was killed or lost from outside once"),
        (Setbacks(stops=3), "the service died 3 times in a row"),
    ],
)  # fmt: skip
def test_setbacks_are_told_in_words(setbacks: Setbacks, expected: str) -> None:
    assert description(setbacks) == expected
