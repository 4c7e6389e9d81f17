"""The checkpoints of one attempt's denoise: resumes from the last one, and writes new ones.

`Checkpoints.denoise` runs a loaded model. A checkpoint is due every `FRAMEFIT_CHECKPOINT_SECONDS`, and before
the job goes back to the queue. One that cannot be used is reported, and the denoise begins at zero: a
checkpoint never fails a job. Must not know the job table.
"""

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from adaptive.denoise.record import DenoiseLoop
from adaptive.denoise.resumable import Resumable
from adaptive.denoise.self_test import Record
from adaptive.denoise.values import NotStorable
from adaptive.device.out_of_memory import is_out_of_memory
from adaptive.pipelines.recorded_call import RecordedClip
from app.artifacts.local_folder import JobArtifacts
from app.jobs import JobSpec, Json
from app.loops import one_line
from app.worker.decoding import OnEvent
from app.worker.denoise.checkpoint_file import Checkpoint, CheckpointFiles, DamagedCheckpoint
from app.worker.denoise.identity import checkpoint_identity, difference
from app.worker.denoise.writer import CheckpointWriter, Written
from app.worker.device_errors import DeviceFault, OutOfMemory
from app.worker.loaded_model import LoadedModel
from app.worker.pipeline_call import OnStep

log = logging.getLogger(__name__)


class Denoise(Protocol):
    """Runs a loaded model."""

    @property
    def fallbacks(self) -> list[Json]:
        """The steps down of the job so far; those of earlier attempts are put in front."""
        ...

    @property
    def recorded(self) -> Resumable | None:
        """The present run; None before the first one."""
        ...

    @property
    def stopped_at_step(self) -> int | None:
        """The step that the denoise ended with early; what it gave is no state to continue from."""
        ...

    def run(
        self,
        image: bytes,
        last_image: bytes | None,
        on_step: OnStep,
        resume: Record | None = None,
        *,
        keyframes: Sequence[bytes] = (),
    ) -> RecordedClip:
        """The recorded decode calls, from the record on. It may be called again."""
        ...


class Surroundings(Protocol):
    """What the job does with checkpoints."""

    def goes_back(self) -> bool:
        """Whether the job is to go back to the queue at this step."""
        ...

    def gives_way(self, step: int, total: int) -> bool:
        """Whether the job is to go back after this step for one of higher priority."""
        ...

    def saved(self, step: int, total: int, data: Json) -> None:
        """Record that the steps up to `step` are on disk."""
        ...

    def gives_back(self) -> None:
        """End this attempt: the last step is on disk. Returns if the reason for that is gone."""
        ...


class Checkpoints:
    """Denoises one job with checkpoints in its folder, at most every `every_seconds`.

    Calls `on_resume(step, total)` where it begins after `step`.
    """

    def __init__(
        self,
        model: LoadedModel,
        artifacts: JobArtifacts,
        every_seconds: float,
        surroundings: Surroundings,
        on_resume: OnStep,
        on_event: OnEvent,
    ) -> None:
        self._model = model
        self._files = CheckpointFiles(artifacts.denoise_inputs, artifacts.denoise_steps)
        self._writer = CheckpointWriter(self._files)
        self._every_seconds = every_seconds
        self._around = surroundings
        self._on_resume = on_resume
        self._on_event = on_event
        self._identity: dict[str, str] = {}
        self._resume: Checkpoint | None = None
        self._denoise: Denoise | None = None  # that can be resumed
        self._captured_at = time.monotonic()
        self._computed = self._reported = 0
        self._captured_step = self._resumed_from = self._total = 0
        self._fault: str | None = None
        self._fallbacks: list[Json] = []

    def denoise(
        self,
        denoise: Denoise,
        spec: JobSpec,
        image: bytes,
        last_image: bytes | None,
        on_step: OnStep,
        keyframes: Sequence[bytes] = (),
    ) -> RecordedClip:
        """The clip that `denoise` makes, from the last checkpoint on if there is one that can be used."""
        run = partial(denoise.run, image, last_image, keyframes=keyframes)
        self._fallbacks = denoise.fallbacks
        if self._model.not_resumable is not None:
            return run(partial(self._counted, on_step))
        self._denoise = denoise
        self._identity = checkpoint_identity(
            self._model.pipe, self._model.entry, self._model.device, spec, image, last_image, *keyframes
        )
        self._resume = self._usable()
        while True:
            self._begin()
            try:
                resume = None if self._resume is None else (self._resume.encoded, self._resume.denoised)
                return run(partial(self._after_step, on_step), resume)
            except Exception as error:
                if not self._failed_in_replay(error):
                    raise
                self._give_up(f"it cannot be replayed: {one_line(error)}")
            finally:
                self._writer.wait()

    def give_back_if_asked(self) -> None:
        """Give the job back at once if it is to go back; call it when `save_steps` has saved its steps."""
        if self._loop is not None and self._fault is None and self._around.goes_back():
            self._around.gives_back()

    @property
    def _recorded(self) -> Resumable | None:
        return None if self._denoise is None else self._denoise.recorded

    @property
    def _loop(self) -> DenoiseLoop | None:
        return None if self._recorded is None else self._recorded.loop

    def report(self) -> Json:
        """How the steps came about, for the job's `denoise`."""
        return {
            "resumed_from_step": self._resumed_from,
            "steps_computed": self._computed,
            "steps_since_checkpoint": self._computed - self._reported,
        }

    def remove(self) -> None:
        """Delete the files: the latents are on disk, or the checkpoint cannot be used."""
        try:
            self._files.remove()
        except OSError as error:  # they go with the job's folder
            log.warning("checkpoint_not_removed reason=%s", error)

    def _counted(self, on_step: OnStep, done: int, total: int) -> None:
        """A step of a model whose denoise cannot be resumed."""
        self._computed = done
        on_step(done, total)

    def _usable(self) -> Checkpoint | None:
        try:
            found = self._files.read()
        except (DamagedCheckpoint, OSError) as error:
            self._give_up(f"it is damaged: {one_line(error)}")
            return None
        if found is None:
            return None
        differs = difference(found.identity, self._identity)
        if differs is not None:
            self._give_up(f"it was made with another {differs}")
            return None
        return found

    def _give_up(self, reason: str) -> None:
        """Begin at zero, and tell why."""
        log.warning("checkpoint_unusable reason=%s", reason)
        self._on_event("checkpoint_unusable", {"reason": reason})  # raises if the job was interrupted
        self._resume = None
        self.remove()

    def _begin(self) -> None:
        self._computed = self._reported = self._captured_step = 0
        self._resumed_from = 0 if self._resume is None else self._resume.denoised.steps
        self._captured_at = time.monotonic()
        self._fallbacks[:] = [] if self._resume is None else self._resume.fallbacks
        if self._resume is not None:
            self._on_resume(self._resumed_from, self._resume.total)

    def _failed_in_replay(self, error: Exception) -> bool:
        """Whether the checkpoint may be what failed."""
        if self._loop is None or not self._loop.is_replaying:
            return False
        return not (isinstance(error, DeviceFault) or _is_missing_memory(error))

    def save_steps(self) -> None:
        """Save the steps that no checkpoint has yet, if the loop is between two steps."""
        self._writer.wait()
        if self._loop is None or not self._loop.can_capture:
            return
        if self._loop.steps > max(self._captured_step, self._resumed_from):
            self._capture(self._total)
            self._writer.wait()
        self._tell(self._writer.written())

    def _after_step(self, on_step: OnStep, done: int, total: int) -> None:
        if done <= self._resumed_from:
            return
        self._computed += 1
        self._total = total
        if self._denoise is not None and self._denoise.stopped_at_step is not None:
            on_step(done, total)
            return
        self._tell(self._writer.written())
        around = self._around
        goes_back = self._fault is None and (around.goes_back() or around.gives_way(done, total))
        if goes_back or (self._is_due() and not self._writer.is_busy):
            self._capture(total)
        if goes_back:
            self._writer.wait()
            self._tell(self._writer.written())
            if self._fault is None:
                self._around.gives_back()
        on_step(done, total)

    def _is_due(self) -> bool:
        return time.monotonic() - self._captured_at >= self._every_seconds

    def _capture(self, total: int) -> None:
        recorded = self._recorded
        if self._fault is not None or recorded is None:
            return
        try:
            denoised = recorded.loop.capture()
        except NotStorable as error:
            self._cannot_continue(str(error))
            return
        self._captured_at = time.monotonic()
        self._captured_step = denoised.steps
        encoded = recorded.encoders.record()
        fallbacks = tuple(self._fallbacks)
        self._writer.start(Checkpoint(self._identity, total, encoded, denoised, fallbacks))
        if self._every_seconds == 0:
            self._writer.wait()
            self._tell(self._writer.written())

    def _tell(self, written: Written | None) -> None:
        if written is None:
            return
        if written.error is not None:
            reason = getattr(written.error, "strerror", None) or one_line(written.error)
            self._cannot_continue(f"it cannot be written: {reason}")
            return
        data = {
            "step": written.step,
            "steps": written.total,
            "bytes": written.size_bytes,
            "seconds": round(written.seconds, 4),
            "steps_since_checkpoint": self._computed - self._reported,
        }
        self._reported = self._computed
        self._around.saved(written.step, written.total, data)

    def _cannot_continue(self, reason: str) -> None:
        """Go on without checkpoints, and tell why."""
        self._fault = reason
        log.warning("checkpoint_unusable reason=%s", reason)
        self._on_event("checkpoint_unusable", {"reason": reason})


def _is_missing_memory(error: Exception) -> bool:
    return isinstance(error, OutOfMemory) or is_out_of_memory(error)
