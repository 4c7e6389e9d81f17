"""Denoises a job whatever memory goes missing meanwhile, and loses no step to it.

Owns the attempts: a call that failed is repeated where it failed; an out-of-memory between two calls lets the
pipeline run again from its start, with its finished steps answered from memory. Must not know the job table.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from adaptive.denoise.early_end import EarlyEnd
from adaptive.denoise.resumable import Resumable
from adaptive.denoise.retries import MissingMemory, missing_memory
from adaptive.denoise.self_test import Record
from adaptive.errors import DoesNotFit
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode, Sound
from app.jobs import JobSpec, Json
from app.worker.decoding import OnEvent
from app.worker.denoise.measure import MeasuredSteps
from app.worker.denoise.room import DenoiseRoom, Limits
from app.worker.denoise.strips import Strips
from app.worker.device_errors import OutOfMemory
from app.worker.loaded_model import LoadedModel
from app.worker.pipeline_call import OnStep

T = TypeVar("T")


class InPlace(Protocol):
    """Decodes a pipeline's calls in place. `failed`: a decode of the present run has failed."""

    failed: bool

    def begin(self) -> None:
        """The pipeline starts from its beginning, with its weights where they were placed."""
        ...

    def decode(self, call: RecordedDecode) -> Tensor:
        """The frames of one call."""
        ...


class ElasticDenoise:
    """One job's denoise on a loaded model. `report` tells what it took, `recorded` is its present run.

    `keep_steps` puts the finished steps in safety before something that may lose them. `strips` show it.
    `finishes_early()` is asked after each step whether the next one is to be the last. `in_place`: the
    decodes of a pipeline that needs real frames; see `run_in_place`.
    """

    def __init__(
        self,
        model: LoadedModel,
        spec: JobSpec,
        limits: Limits,
        on_event: OnEvent,
        keep_steps: Callable[[], None] = lambda: None,
        strips: Strips | None = None,
        finishes_early: Callable[[], bool] = lambda: False,
        in_place: InPlace | None = None,
    ) -> None:
        self._model = model
        self._spec = spec
        self.recorded: Resumable | None = None
        self._measured = MeasuredSteps(model.probe)
        self._keep_steps = keep_steps
        self._strips = strips
        self._finishes_early = finishes_early
        self._in_place = in_place
        self._early_end = EarlyEnd(model.pipe)
        least_bytes = model.least_step_bytes(spec)
        self._room = DenoiseRoom(model, limits, on_event, self._put_in_safety, least_bytes=least_bytes)

    def _put_in_safety(self) -> None:
        if self.recorded is None or not self.recorded.loop.is_replaying:  # else it is not yet where it was
            self._keep_steps()

    def run(
        self,
        image: bytes,
        last_image: bytes | None,
        on_step: OnStep,
        resume: Record | None = None,
        *,
        keyframes: Sequence[bytes] = (),
    ) -> RecordedClip:
        """The recorded decode calls, from the record `resume` on. Raises as `LoadedModel.denoise` does."""
        return self._run(self._model.denoise, image, last_image, keyframes, on_step, resume)

    def run_in_place(
        self,
        image: bytes,
        last_image: bytes | None,
        on_step: OnStep,
        *,
        keyframes: Sequence[bytes] = (),
    ) -> tuple[Any, Sound | None]:
        """The pipeline's own frames, and its sound; what ran out of memory is run again from its start.

        Raises as `LoadedModel.make` does.
        """
        assert self._in_place is not None
        decodes = self._in_place

        def make(*args: Any, **kwargs: Any) -> tuple[Any, Sound | None]:
            decodes.begin()
            return self._model.make(*args, decode=decodes.decode, **kwargs)

        return self._run(make, image, last_image, keyframes, on_step, None)

    def _run(
        self,
        make: Callable[..., T],
        image: bytes,
        last_image: bytes | None,
        keyframes: Sequence[bytes],
        on_step: OnStep,
        resume: Record | None,
    ) -> T:
        room, model = self._room, self._model
        self.recorded = recorded = Resumable(model.pipe, model.device, resume)
        loop = recorded.loop
        strips = () if self._strips is None else (self._strips,)
        finished = 0  # scheduler steps at the last report

        def counted(done: int, total: int) -> None:
            nonlocal finished
            if loop.is_replaying or self._early_end.step is not None:
                return
            self._early_end.step_done(done)
            if done + 1 < total and self._finishes_early():
                self._early_end.end_next()
            if done > room.step or loop.finished > finished:  # else it was reported before
                room.step, finished = done, loop.finished
                if self._strips is not None:
                    self._strips.step_done(done, total)
                on_step(done, total)

        @contextmanager
        def recording(
            _pipe: Any, _device: torch.device, generators: Sequence[torch.Generator]
        ) -> Iterator[Callable[[], object]]:
            nonlocal finished
            may_repeat = model.not_resumable is None
            with recorded.running(generators) if may_repeat else recorded.running_once():
                if not loop.finished:  # its steps are computed again, and reported
                    room.step = finished = 0
                yield loop.step_done

        def attempt() -> T:
            return make(
                self._spec,
                image,
                last_image=last_image,
                keyframes=keyframes,
                on_step=counted,
                handlers=(self._early_end, *strips, room.retries, self._measured),
                recording=recording,
            )

        try:
            made = self._until_it_fits(attempt)
        finally:
            room.close()
            if self._strips is not None:
                self._strips.close()
        if not room.fallbacks and self._in_place is None:  # decodes between its steps would count
            self._model.learn_denoise(self._spec, self._measured.peak(), self._measured.step_seconds)
        return made

    def _until_it_fits(self, attempt: Callable[[], T]) -> T:
        failure: Exception
        while True:
            try:
                return attempt()
            except OutOfMemory as error:
                if self._is_of_decode:
                    raise
                missing, failure = missing_memory(error), error
            except DoesNotFit as error:  # a clip is encoded before the first step
                if self._room.step or self._is_of_decode:
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
    def _is_of_decode(self) -> bool:
        """Whether a decode in place has failed, with everything tried that helps a decode."""
        return self._in_place is not None and self._in_place.failed

    @property
    def computed(self) -> int:
        """Denoiser calls whose result was computed."""
        return 0 if self.recorded is None else self.recorded.loop.computed

    @property
    def repeated(self) -> int:
        """Calls that were made again because they had failed."""
        return self._room.retries.repeated

    @property
    def fallbacks(self) -> list[Json]:
        """The steps down so far, as JSON; those of earlier attempts may be put in front."""
        return self._room.fallbacks

    @property
    def stopped_at_step(self) -> int | None:
        """The step that the denoise ended with before its last one, as a client asked."""
        return self._early_end.step

    def report(self) -> Json:
        """For the job's `denoise`: fallbacks, whether the arithmetic is that of an undisturbed run, and the
        step that it was stopped at.
        """
        stopped = {} if self.stopped_at_step is None else {"stopped_at_step": self.stopped_at_step}
        return {**self._room.report(), **stopped}
