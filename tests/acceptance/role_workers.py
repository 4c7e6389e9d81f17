"""Worker processes of some roles over one data folder, without an API; they die with the starting process."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image
from waiting import wait_for

from app.config import Settings
from app.jobs import Event, Job, JobSpec
from app.models.entries import load_models
from app.pipelines import tiny
from app.store import open_store

START_SECONDS = 240.0
JOB_SECONDS = 600.0


class RoleWorkers:
    """A data folder with the built-in model, and the workers that were started on it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        tiny.build(data_dir / "models" / "tiny")
        self.settings = Settings(data_dir=data_dir, model="tiny")
        self.entry = load_models(self.settings)["tiny"]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        with closing(open_store(self.settings)) as store:
            store.migrate()

    def start(self, worker_id: str, role: str, *, core: int | None = None, **environ: str) -> None:
        """Start a worker, on that core alone if one is given, and wait until it reports."""
        command = [sys.executable, "-m", "app", "worker", "--device", "cpu", "--worker-id", worker_id]
        command += ["--role", role, "--data-dir", str(self.data_dir), "--supervisor-pid", str(os.getpid())]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "FRAMEFIT_HEARTBEAT_SECONDS": "1", **environ}
        with self.log_path.open("ab") as log:
            started = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=Path.cwd())
        if core is not None:
            os.sched_setaffinity(started.pid, {core})
        self._running[worker_id] = started

        def reports() -> bool:
            assert started.poll() is None, self.log()
            with closing(open_store(self.settings)) as store:
                return any(each.id == worker_id for each in store.workers())

        wait_for(reports, START_SECONDS, self.log, every=0.2)

    def kill(self, worker_id: str) -> None:
        """End a worker with SIGKILL, and requeue its job as the supervisor does then."""
        process = self._running.pop(worker_id)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with closing(open_store(self.settings)) as store:
            store.forget_worker(worker_id, "worker_killed")

    def stop(self) -> None:
        """End all workers in an orderly way."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait()
        self._running.clear()

    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return [process.pid for process in self._running.values()]

    def submit(self, **fields: Any) -> str:
        """Queue a job of the built-in model; returns its id."""
        given: Mapping[str, Any] = self.entry.defaults.model_dump()
        spec = JobSpec.model_validate({**given, "prompt": "a wall", "model": "tiny", "seed": 1, **fields})
        picture = io.BytesIO()
        Image.linear_gradient("L").convert("RGB").save(picture, "PNG")
        with closing(open_store(self.settings)) as store:
            return store.add(spec, picture.getvalue()).id

    def job(self, job_id: str) -> Job:
        """The job's row."""
        with closing(open_store(self.settings)) as store:
            return store.get(job_id)

    def wait_for_all(self, job_ids: list[str]) -> None:
        """Wait until the jobs have succeeded."""
        for job_id in job_ids:

            def succeeded(job_id: str = job_id) -> bool:
                job = self.job(job_id)
                assert job.status in ("queued", "running", "succeeded"), (job.error, self.log())
                return job.status == "succeeded"

            wait_for(succeeded, JOB_SECONDS, self.log, every=0.2)

    def events(self, kind: str, job_id: str | None = None) -> list[Event]:
        """All events of that kind, of one job or of all."""
        with closing(open_store(self.settings)) as store:
            return [each for each in store.events_after(0, 100_000, job_id) if each.kind == kind]

    @property
    def log_path(self) -> Path:
        """What the workers write."""
        return self.data_dir / "workers.log"

    def log(self) -> str:
        """The end of what the workers wrote."""
        return self.log_path.read_text(errors="replace")[-6000:]
