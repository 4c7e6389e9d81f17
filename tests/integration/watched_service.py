"""The real service on a stub driver, scraped once a second by a real Prometheus with the shipped files."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import nvml_stub
import psutil
from grafana_boards import Prometheus
from prometheus_server import prometheus_server, running
from waiting import wait_for

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "app" / "assets" / "demo.jpg"
SCRAPE_SECONDS = 1
START_SECONDS = 240
JOB_SECONDS = 240
GIB = 2**30


@dataclass
class Watched:
    """A running pair: the service with its driver, and the Prometheus that watches it."""

    http: httpx.Client
    prometheus: Prometheus
    process: subprocess.Popen[bytes]
    machine: Path
    gpu: nvml_stub.StubGpu
    port: int

    def set_gpu(self, **changes: Any) -> None:
        """Change what the driver says of the card."""
        self.gpu = replace(self.gpu, **changes)
        nvml_stub.write_machine(self.machine, [self.gpu])

    def submit(self, **fields: str) -> str:
        """Queue a job of the built-in model; returns its id."""
        form = {"prompt": "a slow pan", "model": "tiny", "num_inference_steps": "2", "seed": "1", **fields}
        answer = self.http.post("/generate", data=form, files={"image": (PHOTO.name, PHOTO.read_bytes())})
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, as the service tells them."""
        listed: list[dict[str, Any]] = self.http.get("/jobs", params={"limit": 100}).json()["jobs"]
        return listed

    def finish(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Wait for the end of these jobs; returns them."""

        def found() -> list[dict[str, Any]]:
            return [job for job in self.jobs() if job["id"] in ids]

        wait_for(
            lambda: all(job["finished_at"] for job in found()),
            JOB_SECONDS,
            lambda: json.dumps(found())[:3000],
        )
        return found()

    def scraped(self) -> None:
        """Wait until Prometheus has read the page once more, rules included."""
        scrape = f'scrape_samples_scraped{{instance="127.0.0.1:{self.port}"}}'
        asked_at = time.time()
        time_of_last = f"timestamp({scrape})"

        def newer() -> bool:
            samples = self.prometheus.now(time_of_last)
            return bool(samples) and float(samples[0]["value"][1]) > asked_at + SCRAPE_SECONDS

        wait_for(newer, 120, lambda: str(self.prometheus.now(time_of_last)))

    def value(self, expr: str) -> float:
        """The one value of an expression now."""
        samples = self.prometheus.now(expr)
        assert len(samples) == 1, (expr, samples)
        return float(samples[0]["value"][1])

    def workers_alive(self) -> set[int]:
        """Process ids of the workers that reported lately: a killed one is among them for some seconds."""
        devices = self.http.get("/devices").raise_for_status().json()["devices"]
        return {each["worker_pid"] for each in devices if each["worker_state"] != "lost"}

    def child(self, word: str) -> psutil.Process:
        """The service's child process with that word on its command line."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if word in child.cmdline())


@contextmanager
def watched_service(folder: Path, library: Path, ports: tuple[int, int]) -> Iterator[Watched]:
    """Start both, hand them out when the service takes jobs, and stop both."""
    machine, gpu = folder / "machine", nvml_stub.StubGpu(utilization_percent=40)
    nvml_stub.write_machine(machine, [gpu])
    with (
        running(*_serve(folder, library, machine, ports[0]), folder / "service.log") as process,
        prometheus_server(
            folder, ports[1], [f"127.0.0.1:{ports[0]}"], scrape_seconds=SCRAPE_SECONDS
        ) as prometheus,
        httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", timeout=30) as client,
    ):
        wait_for(lambda: _takes_jobs(client), START_SECONDS, (folder / "service.log").read_text)
        yield Watched(client, prometheus, process, machine, gpu, ports[0])


def _takes_jobs(client: httpx.Client) -> bool:
    try:
        return (
            client.get("/readyz").status_code == 200
            and client.post("/plan", json={"model": "tiny"}).is_success
        )
    except httpx.TransportError:
        return False


def _serve(folder: Path, library: Path, machine: Path, port: int) -> tuple[list[str], dict[str, str]]:
    environ = nvml_stub.environment(library, machine) | {
        "FRAMEFIT_DATA_DIR": str(folder / "data"),
        "FRAMEFIT_PORT": str(port),
        "FRAMEFIT_DEVICES": "cpu",
        "FRAMEFIT_HEARTBEAT_SECONDS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return [sys.executable, "-m", "app", "serve"], environ
