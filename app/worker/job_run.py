"""One job from claim to video: load, denoise, keep the latents, decode, encode; told to the job table as it
happens.

Owns the order of the stages, their progress and durations, and the translation of errors into a job's
failure. Does not decide what becomes of the job afterwards (`app.worker.loop`), nor how the device does its
part (`app.worker.engine`).
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from adaptive.errors import AdaptiveError, DecodeOutOfMemory, DoesNotFit
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode, load_clip, save_calls
from app.artifacts.local_folder import JobArtifacts, job_artifacts
from app.config import Settings
from app.jobs import Claim, JobError, Json, Stage
from app.media.thumbnails import write_jpeg
from app.media.video import NO_SPACE, VideoWriteError, VideoWriter
from app.models.components import ModelUnavailable
from app.models.entries import ModelEntry
from app.store import JobStore, StoreError
from app.worker.decoding import Decoding, DeviceFault, OutOfMemory, whole_report
from app.worker.engine import Engine
from app.worker.frame_transfer import FrameTransfer, samples_of, to_pixels
from app.worker.job_control import Interrupted, JobControl, JobLost, JobYielded, stay, wait_for_memory
from app.worker.loaded_model import LoadedModel
from app.worker.pipeline_call import UnsuitablePipeline

log = logging.getLogger(__name__)

# Share of the whole at which each stage begins, and where it ends.
_SPAN = {
    Stage.LOADING: (0.0, 0.02),
    Stage.DENOISING: (0.02, 0.8),
    Stage.WAITING_FOR_MEMORY: (0.8, 0.8),
    Stage.DECODING: (0.8, 0.97),
    Stage.ENCODING: (0.97, 1.0),
}
_PROGRESS_EVERY_SECONDS = 0.25


class JobFailure(Exception):
    """The job cannot be done; the worker can go on."""

    def __init__(self, code: str, message: str, data: Json | None = None) -> None:
        self.error = JobError(code, message, data)
        super().__init__(message)


class JobRun:
    """One attempt at one job."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        engine: Engine,
        entry: ModelEntry,
        claim: Claim,
        control: JobControl,
    ) -> None:
        self.durations: dict[str, float] = {}
        self.decode: Json | None = None
        self._settings = settings
        self._store = store
        self._engine = engine
        self._entry = entry
        self._job, self._token = claim.job, claim.token
        self._control = control
        self._stage = Stage.LOADING
        self._told_at = 0.0

    def run(self) -> Json:
        """Do the job; returns what it made. Raises `JobFailure`, or `Interrupted` for what is no failure."""
        with _failures_named(), self._exhaustion_told():
            artifacts = job_artifacts(self._settings.jobs_dir, self._job.id).make()
            with self._in_stage(Stage.LOADING):
                recorded = self._resumed(artifacts)
                model = self._load()
            if recorded is None:
                recorded = self._denoise(model, artifacts)
            return self._decode(model, recorded, artifacts)

    def _resumed(self, artifacts: JobArtifacts) -> RecordedClip | None:
        """The latents of an earlier attempt, where they are whole."""
        if self._job.latents_path is None:
            return None
        try:
            recorded = load_clip(artifacts.latents)
        except Exception as error:  # whatever is wrong with the file, denoising again puts it right
            log.warning("latents_unreadable job_id=%s reason=%s", self._job.id, error)
            self._event("latents_unreadable", {"reason": str(error)})
            return None
        self._event("resumed_from_latents", {"path": self._job.latents_path, "attempt": self._job.attempts})
        return recorded

    def _load(self) -> LoadedModel:
        return wait_for_memory(
            lambda: self._engine.load(self._entry, self._event, exact_only=self._job.spec.exact_only),
            self._control,
            limit_seconds=self._settings.memory_wait_seconds,
            may_fit_later=self._engine.may_fit_later,
            on_wait=self._wait_for_memory,
        )

    def _denoise(self, model: LoadedModel, artifacts: JobArtifacts) -> RecordedClip:
        spec = self._job.spec
        started = time.monotonic()
        plan = wait_for_memory(
            lambda: model.fit_denoise(spec, self._event),
            self._control,
            limit_seconds=self._settings.memory_wait_seconds,
            may_fit_later=self._engine.may_fit_later,
            on_wait=self._wait_for_memory,
            yield_to_smaller=self._yield_to_smaller,
        )
        with self._in_stage(Stage.DENOISING):
            image, last_image = self._store.image(self._job.id), self._store.last_image(self._job.id)
            recorded = model.denoise(spec, image, last_image=last_image, on_step=self._step)
            save_calls(recorded.calls, artifacts.latents, recorded.sound)
        path = str(artifacts.latents.relative_to(self._settings.data_dir))
        seconds = round(time.monotonic() - started, 3)
        data = {
            "steps": spec.num_inference_steps,
            "seconds": seconds,
            **plan,
            **model.encode_plan,
            **model.weights,
        }
        self._held(self._store.checkpoint(self._job.id, self._token, path, data))
        return recorded

    def _decode(self, model: LoadedModel, recorded: RecordedClip, artifacts: JobArtifacts) -> Json:
        spec = self._job.spec
        shape = model.video_shape(recorded)
        reports: list[Json] = []
        done = 0
        with (
            self._in_stage(Stage.DECODING),
            VideoWriter(artifacts.video, shape, spec.fps, samples_of(recorded.sound)) as writer,
        ):
            transfer = FrameTransfer(writer, model.device)
            for call in recorded.calls:
                decoding = self._open_decode(model, call, first=not reports)
                self._tell(done / shape.frames, kind="stage", stage=Stage.DECODING)
                if not reports:
                    self._show_previews(decoding, artifacts)
                for frames in decoding.frames():
                    if not done:
                        write_jpeg(artifacts.thumbnail, to_pixels(frames[0, :, :1])[0].cpu().numpy())
                    transfer.send(frames)
                    done += frames.shape[2]
                    self._control.check()
                    self._tell(done / shape.frames)
                reports.append(decoding.report())
            self.decode = {**whole_report(reports), "vae": self._entry.vae_class}
            self._encode_rest(writer)
        return {
            "frames": shape.frames,
            "width": shape.width,
            "height": shape.height,
            "fps": spec.fps,
            "seed": spec.seed,
            "audio": None if recorded.sound is None else recorded.sound.as_json(),
            "thumbnail": True,
            "bytes": artifacts.video.stat().st_size,
            "video_path": str(artifacts.video.relative_to(self._settings.data_dir)),
        }

    def _open_decode(self, model: LoadedModel, call: RecordedDecode, *, first: bool) -> Decoding:
        """A planned decode: on the device, after a wait if it must be, else on the CPU if it may be.

        Only before the first call's decode does a wait lose nothing by making way for another job.
        """
        spec = self._job.spec
        try:
            return wait_for_memory(
                lambda: model.open_decode(call, spec, self._event),
                self._control,
                limit_seconds=self._settings.memory_wait_seconds,
                may_fit_later=lambda refusal: self._engine.may_fit_later(refusal, spec.memory_budget_bytes),
                on_wait=self._wait_for_memory,
                yield_to_smaller=self._yield_to_smaller if first else stay,
            )
        except DoesNotFit as refusal:
            if self._engine.host_capacity_bytes is None:
                raise
            data = {"from": "per_frame", "to": "cpu", "needed_bytes": refusal.needed_bytes}
        self._event("fallback", data)
        return model.open_decode_on_host(call, spec, self._event)

    def _show_previews(self, decoding: Decoding, artifacts: JobArtifacts) -> None:
        """Pictures of some frames before any is decoded; they are no part of the video."""
        for number, (frame, picture) in enumerate(decoding.previews()):
            pixels = to_pixels(picture.unsqueeze(1))[0].cpu().numpy()
            write_jpeg(artifacts.preview(number), pixels)
            self._event("preview", {"number": number, "frame": frame})

    def _encode_rest(self, writer: VideoWriter) -> None:
        with self._in_stage(Stage.ENCODING):
            writer.finish()

    def _step(self, done: int, total: int) -> None:
        self._control.check()
        self._tell(done / total, data={"step": done, "steps": total})

    def _wait_for_memory(self, refusal: DoesNotFit) -> None:
        data = {"needed_bytes": refusal.needed_bytes, **self._engine.memory_report()}
        stage = Stage.WAITING_FOR_MEMORY
        begun = _SPAN[self._stage][0]
        self._held(
            self._store.progress(
                self._job.id, self._token, stage=stage, progress=begun, kind="waiting_for_memory", data=data
            )
        )

    def _yield_to_smaller(self) -> None:
        """Let a smaller job of the loaded model run while this one waits; raises `JobYielded` where there is
        one.
        """
        model, worker_id = self._engine.loaded_model, self._job.worker_id
        if model is None or worker_id is None:
            return
        smaller = self._store.yield_to_smaller(
            self._job.id,
            self._token,
            worker_id,
            model=model,
            room_bytes=self._engine.free_bytes - self._settings.reserve_bytes,
            lease_seconds=self._settings.lease_seconds,
        )
        if smaller is not None:
            raise JobYielded(smaller)

    @contextmanager
    def _in_stage(self, stage: Stage) -> Iterator[None]:
        """Enter a stage, say so, and time it; a stage within a stage is not counted twice."""
        outer, started = self._stage, time.monotonic()
        self._stage = stage
        self._tell(0.0, kind="stage")
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self.durations[stage] = round(self.durations.get(stage, 0.0) + seconds, 4)
            if stage is Stage.ENCODING:
                self.durations[outer] = round(self.durations.get(outer, 0.0) - seconds, 4)
            self._stage = outer

    def _tell(
        self,
        share: float,
        *,
        kind: str = "progress",
        stage: Stage | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Report progress within the stage, not more often than anyone can see."""
        self._control.check()
        now = time.monotonic()
        if kind == "progress" and share < 1.0 and now - self._told_at < _PROGRESS_EVERY_SECONDS:
            return
        self._told_at = now
        stage = stage or self._stage
        begin, end = _SPAN[stage]
        progress = begin + share * (end - begin)
        self._held(
            self._store.progress(
                self._job.id, self._token, stage=stage, progress=progress, kind=kind, data=data or {}
            )
        )

    @contextmanager
    def _exhaustion_told(self) -> Iterator[None]:
        """Tell of an out-of-memory that ends the job; the decoder tells of those it goes on from."""
        try:
            yield
        except OutOfMemory as error:
            self._event("oom", {"stage": error.stage})
            raise

    def _event(self, kind: str, data: Mapping[str, Any]) -> None:
        self._control.check()
        told = {"stage": self._stage.value, **data}
        self._held(self._store.event(self._job.id, self._token, kind, told))

    def _held(self, ours: bool) -> None:
        if not ours:
            self._control.interrupt(JobLost)
            self._control.check()


@contextmanager
def _failures_named() -> Iterator[None]:
    """Give every error that is the job's own a stable code; the rest passes and ends the process."""
    try:
        yield
    except (Interrupted, JobFailure, StoreError, DeviceFault):
        raise
    except DoesNotFit as error:
        data = {"needed_bytes": error.needed_bytes, "budget_bytes": error.budget_bytes}
        raise JobFailure("does_not_fit", str(error), data) from error
    except DecodeOutOfMemory as error:
        raise JobFailure("out_of_memory", str(error), _fields(error)) from error
    except OutOfMemory as error:
        raise JobFailure("out_of_memory", str(error), {"stage": error.stage}) from error
    except VideoWriteError as error:
        raise JobFailure("disk_full" if error.disk_full else "encoding_failed", str(error)) from error
    except (ModelUnavailable, UnsuitablePipeline, AdaptiveError) as error:
        code = "model_unavailable" if isinstance(error, ModelUnavailable) else "unsupported"
        raise JobFailure(code, str(error)) from error
    except OSError as error:
        raise JobFailure("disk_full" if error.errno in NO_SPACE else "storage_failed", str(error)) from error
    except Exception as error:
        log.exception("job_broke")
        raise JobFailure("internal_error", f"{type(error).__name__}: {error}") from error


def _fields(error: DecodeOutOfMemory) -> Json:
    return {name: getattr(error, name) for name in ("frames_per_chunk", "retries", "frames_done")}
