"""A `framefit serve` on a data folder, driven over HTTP alone: nothing of the service is imported here."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
START_SECONDS = 120.0
JOB_SECONDS = 120.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.02

Json = dict[str, Any]


class ServedFolder:
    """One service; `command` starts `framefit`, by default that of this checkout. Stop it, or use `with`."""

    def __init__(
        self,
        folder: Path,
        *,
        command: Sequence[str] = (sys.executable, "-m", "app"),
        cwd: Path = ROOT,
        **environ: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._log = folder.with_name(f"{folder.name}.log")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FRAMEFIT_")}
        own = {
            "FRAMEFIT_DATA_DIR": str(folder),
            "FRAMEFIT_DEVICES": "cpu",
            "FRAMEFIT_CALIBRATE_SECONDS": "0",
            "OMP_NUM_THREADS": "1",
        }
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "serve", "--port", "0", "--supervisor-pid", str(os.getpid())],
                env={**inherited, **own, **environ},
                cwd=cwd,
                stdout=log,
                stderr=log,
            )
        self.http = httpx.Client(base_url=self._wait(self._url, START_SECONDS), timeout=30.0)

    def __enter__(self) -> "ServedFolder":
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _url(self) -> str | None:
        assert self.process.poll() is None, f"the service ended:\n{self.log()}"
        try:
            found = json.loads((self._folder / "service.json").read_text())
        except (OSError, ValueError):
            return None
        return str(found["url"]) if found["pid"] == self.process.pid else None

    def _wait(self, look: Callable[[], Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert time.monotonic() < deadline, f"nothing came within {seconds} s\n{self.log()}"
            time.sleep(POLL_SECONDS)
        return found

    def log(self) -> str:
        """The end of the service's log."""
        return self._log.read_text(errors="replace")[-6000:]

    def wait_ready(self) -> None:
        """Wait until a worker has reported its device."""
        self._wait(lambda: self.http.get("/readyz").status_code == 200, START_SECONDS)

    def submit(self, image: bytes, key: str | None = None, **fields: Any) -> Json:
        """Hand in a job, with an idempotency key where one is given; the answer's body."""
        headers = {} if key is None else {"Idempotency-Key": key}
        form = {name: str(value) for name, value in fields.items()}

        def answered() -> Json | None:
            answer = self.http.post("/generate", data=form, files={"image": image}, headers=headers)
            if answer.status_code == 503:
                return None
            assert answer.status_code == 202, answer.text
            body: Json = answer.json()
            return body

        job: Json = self._wait(answered, START_SECONDS)
        return job

    def job(self, job_id: str) -> Json:
        """The job as it is now."""
        body: Json = self.http.get(f"/jobs/{job_id}").raise_for_status().json()
        return body

    def wait_until(self, job_id: str, met: Callable[[Json], bool]) -> Json:
        """The job as soon as it meets a condition; fails where it ended without."""

        def checked() -> Json | None:
            job = self.job(job_id)
            if met(job):
                return job
            assert job["status"] in ("queued", "running"), job
            return None

        job: Json = self._wait(checked, JOB_SECONDS)
        return job

    def ended(self, job_id: str, status: str = "succeeded") -> Json:
        """The job once it has ended that way."""
        return self.wait_until(job_id, lambda job: job["status"] == status)

    def events(self, job_id: str) -> list[tuple[str, Json]]:
        """The history of a job that has ended: the kind and the data of each event."""
        text = self.http.get(f"/jobs/{job_id}/events").raise_for_status().text
        kinds = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("event: ")]
        data = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("data: ")]
        return [(kind, json.loads(each)) for kind, each in zip(kinds, data, strict=True)]

    def kinds(self, job_id: str) -> list[str]:
        """The kinds of the job's events, in order."""
        return [kind for kind, _ in self.events(job_id)]

    def worker_pid(self) -> int:
        """The process of the only device's worker."""
        return int(self._wait(self._reported_pid, START_SECONDS))

    def _reported_pid(self) -> int | None:
        devices = self.http.get("/devices").raise_for_status().json()["devices"]
        return next((each["worker_pid"] for each in devices if each["worker_state"] != "lost"), None)

    def kill(self) -> None:
        """Kill the service without warning, and wait until its children have died with it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        self.http.close()
        _, alive = psutil.wait_procs(children, timeout=STOP_SECONDS)
        assert not alive, f"orphans: {[each.cmdline() for each in alive]}"

    def stop(self) -> None:
        """Stop at once, in good order."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(STOP_SECONDS)
