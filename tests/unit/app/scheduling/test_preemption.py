"""When a running job gives its device to one of higher priority: seconds in, a decision out."""

from typing import Any

import pytest

from app.jobs import WorkerRow
from app.scheduling.preemption import Switch, gives_way, others_free_in, own_left_seconds
from app.store.backfill import Running, Urgent

AFTER = 30.0
INF = float("inf")


@pytest.mark.parametrize(
    ("switch", "after_seconds", "expected"),
    [
        pytest.param(Switch(0, 31), AFTER, True, id="it would wait longer than allowed"),
        pytest.param(Switch(0, 30), AFTER, False, id="it would wait as long as allowed"),
        pytest.param(Switch(25, 10), AFTER, True, id="the time that it has waited counts"),
        pytest.param(Switch(0, 3600), 0, False, id="switched off"),
        pytest.param(Switch(0, 3600), -1, False, id="switched off by a negative number"),
        pytest.param(Switch(0, 3600, preemptions=1), AFTER, True, id="a second time"),
        pytest.param(Switch(0, 3600, preemptions=2), AFTER, False, id="not a third time"),
        pytest.param(Switch(0, 3600, [0.0]), AFTER, False, id="another device is idle"),
        pytest.param(Switch(0, 3600, [500.0, 29.0]), AFTER, False, id="another device is free soon enough"),
        pytest.param(Switch(0, 3600, [500.0, 31.0]), AFTER, True, id="other devices are free too late"),
        pytest.param(Switch(0, 100, load_seconds=99), AFTER, True, id="loading two models pays"),
        pytest.param(Switch(0, 100, load_seconds=100), AFTER, False, id="loading two models does not pay"),
        pytest.param(Switch(0, 3600, [90.0], 100), AFTER, False, id="loading is longer than the others take"),
        pytest.param(Switch(600, 2, save_seconds=3), AFTER, False, id="it ends before its steps are saved"),
        pytest.param(Switch(600, 60, (), 58, 3), AFTER, False, id="all costs count together"),
    ],
)
def test_a_job_gives_way_only_if_the_other_waits_too_long_and_the_switch_pays(
    switch: Switch, after_seconds: float, expected: bool
) -> None:
    assert gives_way(switch, after_seconds) is expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((2.0, 12, 30, 10.0), 46.0), ((2.0, 12, 30, None), 36.0), ((2.0, 30, 30, 10.0), 10.0)],
)
def test_the_rest_of_a_job_is_its_steps_and_its_decode(arguments: Any, expected: float) -> None:
    assert own_left_seconds(*arguments) == expected


def worker(worker_id: str, state: Any = "active", **device: Any) -> WorkerRow:
    report = {"name": "cuda", "models": ["tiny"], "capacity_bytes": 100, **device}
    return WorkerRow(worker_id, report, None, state, 0.0, 0.0)


@pytest.mark.parametrize(
    ("other", "running", "expected"),
    [
        pytest.param(worker("b"), [], [0.0], id="idle"),
        pytest.param(worker("b"), [Running("b", 0.75, 40.0)], [10.0], id="a quarter is left"),
        pytest.param(worker("b"), [Running("b", 0.5, None)], [30.0], id="nothing is known of it"),
        pytest.param(worker("b"), [Running("b", 0.0, 40.0, 600.0)], [640.0], id="a download is before it"),
        pytest.param(
            worker("b"), [Running("b", 0.0, 40.0, None)], [INF], id="nobody knows how long it downloads"
        ),
        pytest.param(worker("b", "paused"), [], [], id="paused"),
        pytest.param(worker("b", models=["another"]), [], [], id="does not serve the model"),
        pytest.param(worker("b", models=None), [], [0.0], id="serves all models"),
        pytest.param(worker("b", capacity_bytes=49), [], [], id="too small"),
        pytest.param(worker("b", capacity_bytes=49, host_capacity_bytes=50), [], [0.0], id="its host can"),
        pytest.param(worker("b", capacity_bytes=None), [], [0.0], id="unknown capacity"),
        pytest.param(worker("a"), [], [], id="the device itself"),
    ],
)
def test_another_device_counts_if_it_could_run_the_job(
    other: WorkerRow, running: list[Running], expected: list[float]
) -> None:
    urgent = Urgent("id", "tiny", 5, 50, 0.0)
    own = Running("a", 0.1, 100.0)
    assert others_free_in(urgent, "a", [worker("a"), other], [own, *running]) == expected
