"""Which worker decodes a denoised job: seconds in, a decision out."""

from typing import Any

import pytest

from app.fields.roles import Role
from app.jobs import WorkerRow
from app.scheduling.handover import (
    NEVER,
    Elsewhere,
    Here,
    capacity_of,
    choose,
    may_decode,
    soonest,
)
from app.store.roles.waiting import Decode


def there(free_in: float, seconds: float, loads: float = 0.0) -> Elsewhere:
    return Elsewhere("b", free_in, seconds, loads)


@pytest.mark.parametrize(
    ("here", "elsewhere", "expected"),
    [
        pytest.param(Here(4), there(0, 4), False, id="nothing waits, and both take as long"),
        pytest.param(Here(4), there(0, 3), True, id="nothing waits, and the other is faster"),
        pytest.param(Here(4), there(2, 3), False, id="nothing waits, and the other is faster but busy"),
        pytest.param(Here(4, 6, 1), there(0, 4), True, id="one waits, and the other is idle"),
        pytest.param(Here(4, 6, 2), there(0, 4, 5), True, id="a load is shorter than what is gained"),
        pytest.param(Here(4, 6, 1), there(0, 4, 40), False, id="a load is longer than all that is gained"),
        pytest.param(Here(8, 2, 99), there(6, 8), True, id="long decodes, and the other soon runs dry"),
        pytest.param(Here(8, 2, 99), there(12, 8), False, id="long decodes, and enough waits there"),
        pytest.param(
            Here(1, 100, 1), there(0, 50), False, id="a slow device costs this job more than one gains"
        ),
        pytest.param(
            Here(1, 100, 100), there(0, 50), True, id="many that wait gain more than this one loses"
        ),
        pytest.param(Here(NEVER, 6, 1), there(500, 40), True, id="it does not fit here"),
        pytest.param(Here(NEVER), there(500, 40), True, id="it does not fit here, and nothing waits"),
    ],
)
def test_the_decode_goes_to_where_all_ends_earlier(here: Here, elsewhere: Elsewhere, expected: bool) -> None:
    assert choose(here, elsewhere).elsewhere is expected


@pytest.mark.parametrize("decode_share", [0.1, 0.3, 0.4, 0.5, 0.6, 0.8, 0.95])
def test_a_queue_ends_almost_as_early_as_two_devices_could_end_it(decode_share: float) -> None:
    jobs, decode, denoise = 100, decode_share, 1 - decode_share
    here = other = 0.0  # when each device is free
    for number in range(jobs):
        here += denoise
        left = jobs - number - 1
        asked = Here(decode, denoise if left else None, left)
        if choose(asked, there(max(0.0, other - here), decode)).elsewhere:
            other = max(other, here) + decode
        else:
            here += decode
    bound = max(jobs * denoise, jobs / 2)
    assert max(here, other) <= 1.1 * bound + 1


def worker(worker_id: str, state: Any = "active", **device: Any) -> WorkerRow:
    report = {"name": "cpu", "models": ["tiny"], "capacity_bytes": 100, **device}
    return WorkerRow(worker_id, report, None, state, 0.0, 0.0)


@pytest.mark.parametrize(
    ("own_role", "other", "expected"),
    [
        (Role.BOTH, worker("b", role="decode"), True),
        (Role.BOTH, worker("b", role="both"), False),
        (Role.BOTH, worker("b"), False),
        (Role.DENOISE, worker("b"), True),
        (Role.DENOISE, worker("b", role="denoise"), False),
        (Role.DENOISE, worker("b", "paused", role="decode"), False),
        (Role.DENOISE, worker("a", role="decode"), False),
    ],
)
def test_decodes_are_left_to_live_workers_of_that_role(
    own_role: Role, other: WorkerRow, expected: bool
) -> None:
    assert may_decode(other, own_id="a", own_role=own_role) is expected


def test_a_decode_may_need_what_the_device_or_its_host_has() -> None:
    assert capacity_of(worker("b", host_capacity_bytes=500)) == 500
    assert capacity_of(worker("b", host_capacity_bytes=None)) == 100
    assert capacity_of(worker("b", capacity_bytes=None)) > 2**60


def found(spec: Any, workers: list[WorkerRow], *decodes: Decode, needed_bytes: int = 0) -> Elsewhere | None:
    return soonest(spec, needed_bytes, workers, decodes, None, 0, usual_seconds=10.0)


def test_the_decoder_that_is_through_first_counts_with_all_that_waits_before(make_spec: Any) -> None:
    spec, two = make_spec(), [worker("b"), worker("c")]
    assert found(spec, []) is None
    assert found(spec, two, needed_bytes=101) is None
    assert found(spec, [worker("b", models=["another"])]) is None
    idle = found(spec, two, Decode("b", 0.5, 8.0))
    assert (idle and idle.worker_id, idle and idle.free_in) == ("c", 0.0)
    busy = found(spec, two, Decode("b", 0.5, 8.0), Decode("c", 1.0, 8.0), Decode(None, 1.0, 5.0))
    assert (busy and busy.worker_id, busy and busy.free_in) == ("c", 8.0), "b takes the one that waits"
    unknown = found(spec, [worker("b")], Decode("b", 0.5, None))
    assert (unknown and unknown.free_in, unknown and unknown.ends_in) == (5.0, 15.0)
    loads = found(spec, [worker("b", load_seconds={"tiny": 3.0}), worker("c", load_seconds={"tiny": 4.0})])
    assert (loads and loads.worker_id, loads and loads.ends_in) == ("b", 13.0)
    loaded = found(spec, [worker("b", loaded_model="tiny", load_seconds={"tiny": 3.0})])
    assert loaded is not None
    assert loaded.ends_in == 10.0
