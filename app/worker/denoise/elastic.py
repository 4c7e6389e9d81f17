"""Denoises a job whatever memory goes missing meanwhile, and loses no step to it.

Owns the attempts: a call that failed is repeated where it failed; an out-of-memory between two calls lets the
pipeline run again from its start, with its finished steps answered from memory. Must not know the job table.
"""

from collections.abc import Callable
from typing import TypeVar

from adaptive.denoise.retries import MissingMemory, missing_memory
from adaptive.denoise.self_test import Recording
from adaptive.denoise.steps_kept import KeptSteps
from adaptive.errors import DoesNotFit
from adaptive.pipelines.recorded_call import RecordedClip
from app.jobs import JobSpec, Json
from app.worker.decoding import OnEvent
from app.worker.denoise.measure import MeasuredSteps
from app.worker.denoise.room import DenoiseRoom, Limits
from app.worker.device_errors import OutOfMemory
from app.worker.loaded_model import LoadedModel, unrecorded
from app.worker.pipeline_call import OnStep

T = TypeVar("T")


class ElasticDenoise:
    """One job's denoise on a loaded model. `report` tells what it took.

    `keep_steps` puts the finished steps in safety before something that may lose them.
    """

    def __init__(
        self,
        model: LoadedModel,
        spec: JobSpec,
        limits: Limits,
        on_event: OnEvent,
        keep_steps: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._spec = spec
        self._kept = KeptSteps()
        self._measured = MeasuredSteps(model.probe)
        self._keep_steps = keep_steps
        least_bytes = model.least_step_bytes(spec)
        self._room = DenoiseRoom(model, limits, on_event, self._put_in_safety, least_bytes=least_bytes)

    def _put_in_safety(self) -> None:
        if not self._kept.is_repeating:  # else what others see of the loop is not yet where it was
            self._keep_steps()

    def run(
        self,
        image: bytes,
        last_image: bytes | None,
        on_step: OnStep,
        recording: Recording = unrecorded,
    ) -> RecordedClip:
        """The recorded decode calls. Raises as `LoadedModel.denoise` does."""
        room, kept = self._room, KeptSteps()
        self._kept = kept

        finished = 0  # scheduler steps at the last report

        def counted(done: int, total: int) -> None:
            nonlocal finished
            if kept.is_repeating:
                return
            if done > room.step or kept.steps > finished:  # else it was reported before
                room.step, finished = done, kept.steps
                on_step(done, total)

        def attempt() -> RecordedClip:
            nonlocal finished
            kept.begin(may_repeat=self._model.not_resumable is None)
            if not kept.steps:  # its steps are computed again, and reported
                room.step = finished = 0
            return self._model.denoise(
                self._spec,
                image,
                last_image=last_image,
                on_step=counted,
                handlers=(kept, room.retries, self._measured),
                recording=recording,
            )

        try:
            clip = self._until_it_fits(attempt)
        finally:
            room.close()
        if not room.fallbacks:
            self._model.learn_denoise(self._spec, self._measured.peak(), self._measured.step_seconds)
        return clip

    def _until_it_fits(self, attempt: Callable[[], T]) -> T:
        failure: Exception
        while True:
            try:
                return attempt()
            except OutOfMemory as error:
                missing, failure = missing_memory(error), error
            except DoesNotFit as error:  # a clip is encoded before the first step
                if self._room.step:
                    raise
                short_bytes = max(0, error.needed_bytes - error.budget_bytes)
                missing, failure = MissingMemory(str(error), short_bytes, is_refusal=True), error
            self._put_in_safety()
            if not self._room.make(missing):
                if isinstance(failure, OutOfMemory):
                    failure.needed_bytes = self._room.missing_bytes
                    failure.is_reported = True
                raise failure

    @property
    def computed(self) -> int:
        """Denoiser calls whose result was computed."""
        return self._kept.computed

    @property
    def repeated(self) -> int:
        """Calls that were made again because they had failed."""
        return self._room.retries.repeated

    @property
    def fallbacks(self) -> list[Json]:
        """The steps down so far, as JSON; those of earlier attempts may be put in front."""
        return self._room.fallbacks

    def report(self) -> Json:
        """For the job's `denoise`: fallbacks, and whether the arithmetic is that of an undisturbed run."""
        return self._room.report()
