"""A real `framefit serve` in processes of its own, driven over HTTP; it dies with the test run."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image
from scraped import total
from waiting import POLL_SECONDS, wait_for

from app.config import Settings
from app.jobs import Event
from app.store import open_store

START_SECONDS = 120.0
JOB_SECONDS = 240.0
END_POLL_SECONDS = 0.15  # an end does not pass by: asking rarely leaves the cores to the job


class RunningService:
    """One service on a data folder. Restart it by making another one on the same folder."""

    def __init__(self, data_dir: Path, environ: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.settings = Settings(data_dir=data_dir)
        data_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = data_dir / "serve.log"
        own = {
            "FRAMEFIT_DEVICES": "cpu",
            "FRAMEFIT_MODEL": "tiny",
            "FRAMEFIT_CALIBRATE_SECONDS": "0.2",
            "OMP_NUM_THREADS": "1",  # tests run side by side: threads would spin for each other
        }
        command = [sys.executable, "-m", "app", "serve", "--port", "0", "--supervisor-pid", str(os.getpid())]
        # The folder comes last: `environ` may be all variables of this process, one of them set by a test.
        variables = {**os.environ, **own, **(environ or {}), "FRAMEFIT_DATA_DIR": str(data_dir)}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=Path.cwd())
        try:
            self.http = httpx.Client(base_url=self._url(), timeout=120.0)
        except BaseException:  # nobody else could end it
            self.process.kill()
            self.process.wait()
            raise

    def _url(self) -> str:
        def announced() -> str | None:
            if self.process.poll() is not None:
                raise AssertionError(f"the service ended:\n{self.log()}")
            try:
                found = json.loads((self.data_dir / "service.json").read_text())
            except (OSError, ValueError):
                return None
            return str(found["url"]) if found["pid"] == self.process.pid else None

        return wait_for(announced, START_SECONDS, self.log)

    def log(self) -> str:
        """The service's log so far."""
        return self.log_path.read_text(errors="replace")[-6000:]

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything under it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def worker(self) -> psutil.Process:
        """The worker's process."""
        return wait_for(
            lambda: next((p for p in self.processes() if "worker" in p.cmdline()), None),
            START_SECONDS,
            self.log,
        )

    def submit(self, images: Mapping[str, bytes] | None = None, **fields: Any) -> dict[str, Any]:
        """Hand in a job; the answer's body. A service that is still getting ready is asked again.

        `images`: by field name, beside the picture that is always sent.
        """
        picture = io.BytesIO()
        Image.linear_gradient("L").convert("RGB").save(picture, "PNG")

        def answered() -> dict[str, Any] | None:
            files = {"image": picture.getvalue(), **(images or {})}
            form = {"prompt": "a grey wall", **fields}
            answer = self.http.post("/generate", data={k: str(v) for k, v in form.items()}, files=files)
            if answer.status_code == 503:
                return None
            assert answer.status_code == 202, answer.text
            body: dict[str, Any] = answer.json()
            return body

        return wait_for(answered, START_SECONDS, self.log)

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as it is now."""
        body: dict[str, Any] = self.http.get(f"/jobs/{job_id}").raise_for_status().json()
        return body

    def wait_until(
        self, job_id: str, met: Callable[[dict[str, Any]], bool], *, every: float = POLL_SECONDS
    ) -> dict[str, Any]:
        """The job as soon as it meets a condition; fails at once where it has ended otherwise."""

        def checked() -> dict[str, Any] | None:
            job = self.job(job_id)
            if met(job):
                return job
            assert job["status"] in ("queued", "running"), job
            return None

        return wait_for(checked, JOB_SECONDS, self.log, every=every)

    def finished(self, job_id: str, status: str = "succeeded") -> dict[str, Any]:
        """The job once it has ended that way."""
        return self.wait_until(job_id, lambda job: job["status"] == status, every=END_POLL_SECONDS)

    def events(self, job_id: str) -> list[Event]:
        """The job's history, from the table that everything else reads."""
        store = open_store(self.settings)
        try:
            return store.events_after(0, job_id=job_id)
        finally:
            store.close()

    def kinds(self, job_id: str) -> list[str]:
        """The job's history by kinds."""
        return [event.kind for event in self.events(job_id)]

    def metric(self, line_start: str) -> float:
        """Value of the metric's line that starts so; 0 where there is none. It follows the table of events at
        a poll's distance: wait for what it shall become.
        """
        text = self.http.get("/metrics").raise_for_status().text
        values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(line_start)]
        return sum(float(value) for value in values)

    def counted(self, name: str, **labels: str) -> float:
        """Sum of the metric's series with these labels, as far behind as `metric`."""
        return total(self.http.get("/metrics").raise_for_status().text, name, **labels)

    def kill(self) -> None:
        """Kill the parent without warning, and see every process of the service go."""
        everyone = self.processes()
        self.process.kill()
        self.process.wait()
        self.http.close()
        _, alive = psutil.wait_procs(everyone, timeout=120)
        assert not alive, f"orphans: {[p.cmdline() for p in alive]}"

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop in good order: at once with SIGINT, after the running job's step or decode with SIGTERM."""
        if self.process.poll() is None:
            everyone = self.processes()
            self.process.send_signal(number)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
            _, alive = psutil.wait_procs(everyone, timeout=120)
            assert not alive, f"orphans: {[p.cmdline() for p in alive]}"
        self.http.close()


StartService = Callable[..., RunningService]


def service_starter(built_model: Path, data_dir: Path) -> Iterator[StartService]:
    """Starts services on the folder; every one that still runs is stopped at the end."""
    started: list[RunningService] = []
    models = data_dir / "models"
    models.mkdir(parents=True)
    (models / "tiny").symlink_to(built_model)

    def start(**environ: str) -> RunningService:
        started.append(RunningService(data_dir, environ))
        return started[-1]

    yield start
    for service in started:
        service.stop()
