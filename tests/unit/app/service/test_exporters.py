"""Two API processes of one database: sums over both are right, whichever of them is killed."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_for

from app.jobs import JobSpec, JobStatus
from app.store import JobStore

SECONDS = 120.0
COUNTER = 'framefit_jobs_total{gpu="cpu",host="host",model="tiny",outcome="succeeded"}'
Series = dict[str, float]


class ApiProcess:
    """`framefit api` in a process of its own."""

    def __init__(self, database_url: str, data_dir: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            variables = {
                name: value for name, value in os.environ.items() if not name.startswith("FRAMEFIT_")
            }
            variables |= {"FRAMEFIT_DATABASE_URL": database_url, "FRAMEFIT_DATA_DIR": str(data_dir)}
            command = [sys.executable, "-m", "app", "api", "--listen-fd", str(listener.fileno())]
            self.process = subprocess.Popen(
                [*command, "--supervisor-pid", str(os.getpid())],
                env={**variables, "FRAMEFIT_MODEL": "tiny"},
                pass_fds=[listener.fileno()],
            )

    def series(self) -> Series | None:
        """Every series of /metrics; None while the process starts or still counts."""
        try:
            answer = httpx.get(f"{self.url}/metrics", timeout=30)
        except httpx.TransportError:
            return None
        found = {}
        for family in text_string_to_metric_families(answer.raise_for_status().text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return None if found["framefit_starting"] else found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Iterator[Callable[[], ApiProcess]]:
    started: list[ApiProcess] = []
    (tmp_path / "data").mkdir()

    def start_one() -> ApiProcess:
        started.append(ApiProcess(database_url, tmp_path / "data"))
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.kill()


def finish_jobs(store: JobStore, spec: JobSpec, number: int) -> None:
    for _ in range(number):
        store.add(spec, b"image")
        claim = store.claim("host/cpu/1", models=["tiny"])
        assert claim is not None
        assert store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, durations={"loading": 0.1})


def test_sums_over_two_api_processes_are_right_and_stay_so_when_one_is_killed(
    database_url: str, start: Callable[[], ApiProcess], make_spec: Callable[..., JobSpec]
) -> None:
    store = JobStore(database_url)
    finish_jobs(store, make_spec(), 3)
    store.add(make_spec(), b"image")
    apis = [start(), start()]

    def shown() -> tuple[Series, Series] | None:
        first, second = (one.series() for one in apis)
        if first is None or second is None or COUNTER not in first | second:
            return None  # a scrape may lie between the last event that was counted and the duty to show it
        return first, second

    def total(name: str) -> float:
        return sum((one.series() or {}).get(name, 0.0) for one in apis)

    found = wait_for(shown, SECONDS)
    sums = {name: sum(one.get(name, 0.0) for one in found) for name in found[0] | found[1]}
    assert (sums[COUNTER], sums["framefit_jobs_queued"]) == (3, 1)
    assert sums["framefit_exporter"] == 1
    assert all("framefit_data_free_bytes" in one for one in found), "each shows what is its own"

    apis.sort(key=lambda one: -(one.series() or {})["framefit_exporter"])
    apis.pop(0).kill()
    finish_jobs(store, make_spec(), 1)
    wait_for(lambda: total(COUNTER) == 4, SECONDS)
    assert total("framefit_exporter") == 1

    if database_url.startswith("sqlite"):  # the rest is the same for both, and starting takes long
        apis.pop().kill()
        apis.append(start())
        wait_for(lambda: apis[0].series() is not None, SECONDS)
        assert total(COUNTER) == 4
    store.close()
