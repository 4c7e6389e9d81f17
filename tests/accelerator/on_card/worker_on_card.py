"""A real worker on a pretended card, in the test's own process, and the moments at which a test acts."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from app.config import Settings
from app.jobs import Event, Job, JobSpec
from app.models.entries import load_models
from app.store import JobStore
from app.worker.engine import Engine
from app.worker.loop import Worker


class WatchedStore(JobStore):
    """A job table that calls `act(kind, data)` at each event of a running job."""

    act: Callable[[str, dict[str, Any]], None] = staticmethod(lambda _kind, _data: None)

    def event(self, job_id: str, token: int, kind: str, data: Any) -> bool:
        written = super().event(job_id, token, kind, data)
        self.act(kind, dict(data))
        return written

    def progress(self, job_id: str, token: int, **fields: Any) -> bool:
        written = super().progress(job_id, token, **fields)
        self.act(fields["kind"], {**fields["data"], "stage": fields["stage"].value})
        return written


class WorkerOnCard:
    """The built-in model, jobs that run at once, and their history."""

    def __init__(self, folder: Path, model: Path, device: str, **settings: Any) -> None:
        (folder / "models").mkdir(parents=True)
        (folder / "models" / "tiny").symlink_to(model)
        options = {"calibrate_seconds": 0, "reserve_bytes": 16 * 2**20, "memory_wait_seconds": 60, **settings}
        self.settings = Settings(data_dir=folder, **options)
        self.store = WatchedStore(self.settings.resolved_database_url)
        self.store.migrate()
        self.engine = Engine(self.settings, device)
        self._worker = Worker(self.settings, load_models(self.settings), self.store, self.engine, "w")

    def add(self, **fields: Any) -> str:
        file = io.BytesIO()
        Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
        small = {"width": 64, "height": 64, "num_frames": 33, "fps": 8, "seed": 5}
        steps = {"num_inference_steps": 1, "guidance_scale": 1.0}
        spec = JobSpec(**{"prompt": "a grey wall", "model": "tiny", **small, **steps, **fields})
        return self.store.add(spec, file.getvalue()).id

    def run_next(self) -> Job:
        """Claim the next job and run it; the job afterwards."""
        claim = self._worker._claim()
        assert claim is not None
        self._worker._run_job(claim)
        return self.store.get(claim.job.id)

    def run(self, **fields: Any) -> Job:
        self.add(**fields)
        return self.run_next()

    def events(self, job_id: str, kind: str) -> list[Event]:
        return [event for event in self.store.events_after(0, 1000, job_id) if event.kind == kind]

    def video(self, job: Job) -> bytes:
        assert job.result is not None, job.error
        return (self.settings.data_dir / job.result["video_path"]).read_bytes()
