"""What one attempt at a job tells the job table: its stages, its progress, and the memory that it waits for.

Every report needs the lease. Does not know what the stages do (`app.worker.job.run`).
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from adaptive.errors import DoesNotFit, NonFiniteValues
from app.config import Settings
from app.jobs import STAGE_PROGRESS, Claim, Stage
from app.store import JobStore
from app.worker.device_errors import OutOfMemory, translated_device_errors
from app.worker.engine import Engine
from app.worker.finite import found_json
from app.worker.job.control import (
    JobControl,
    JobLost,
    JobYielded,
    never_yield,
    wait_for_bytes,
    wait_for_memory,
)
from app.worker.job.in_place import RoundsDone
from app.worker.roles.helpers import Helpers

T = TypeVar("T")
log = logging.getLogger(__name__)

_PROGRESS_EVERY_SECONDS = 0.25


class AttemptReports:
    """The reports of one attempt. `durations` (seconds by stage) fill while it runs."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        engine: Engine,
        claim: Claim,
        control: JobControl,
        helpers: Helpers,
    ) -> None:
        self.durations: dict[str, float] = {}
        self._settings = settings
        self._store = store
        self._engine = engine
        self._claim, self._job, self._token = claim, claim.job, claim.token
        self._control = control
        self._helpers = helpers
        self._stage = Stage.LOADING
        self._reported_at = self._share = 0.0
        self._in_place: RoundsDone | None = None  # how far a pipeline is that decodes in place
        self._waited_seconds = 0.0  # in the denoise, or in mid-decode since the last chunk

    def _once_it_fits(
        self, attempt: Callable[[], T], *, may_yield: bool, budget_bytes: int | None = None
    ) -> T:
        """The result of `attempt`, repeated while memory is missing; see `wait_for_memory`."""
        return wait_for_memory(
            attempt,
            self._control,
            limit_seconds=self._settings.memory_wait_seconds,
            may_fit_later=lambda refusal: self._engine.may_fit_later(refusal, budget_bytes),
            on_wait=self._report_memory_wait,
            yield_to_smaller=self._yield_to_smaller if may_yield else never_yield,
        )

    def _memory_returns(self, needed_bytes: int, at_poll: Callable[[], None] = lambda: None) -> bool:
        """Wait in a stage for memory that another program took; returns whether it is back.

        `at_poll` is called at each look and may raise.

        Waits of one denoise, and those between two chunks of a decode, have one limit together.
        """
        stage, started = self._stage, time.monotonic()
        if needed_bytes > self._engine.most_bytes:
            return False

        def budget_bytes() -> int:
            at_poll()
            return self._engine.free_bytes - self._settings.reserve_bytes

        back = wait_for_bytes(
            needed_bytes,
            budget_bytes,
            self._control,
            limit_seconds=max(0.0, self._settings.memory_wait_seconds - self._waited_seconds),
            on_wait=self._report_memory_wait,
        )
        self._waited_seconds += time.monotonic() - started
        if back:
            self._report(self._share, kind="stage", stage=stage)
        return back

    def _report_memory_wait(self, refusal: DoesNotFit) -> None:
        data = {"needed_bytes": refusal.needed_bytes, **self._engine.memory_report()}
        stage = Stage.WAITING_FOR_MEMORY
        done = self._progress(self._stage, self._share)
        self._require_lease(
            self._store.progress(
                self._job.id, self._token, stage=stage, progress=done, kind="waiting_for_memory", data=data
            )
        )

    def _yield_to_smaller(self) -> None:
        """If a smaller job of the loaded model is queued, requeue this one and raise `JobYielded`."""
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
            part=self._helpers.part([model]),
        )
        if smaller is not None:
            raise JobYielded(smaller)

    @contextmanager
    def _in_stage(self, stage: Stage) -> Iterator[None]:
        """Enter a stage, report it and time it. One within another is not counted twice."""
        outer, started = self._stage, time.monotonic()
        self._stage = stage
        self._report(0.0, kind="stage")
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self.durations[stage] = round(self.durations.get(stage, 0.0) + seconds, 4)
            if outer in (Stage.DENOISING, Stage.DECODING):
                self.durations[outer] = round(self.durations.get(outer, 0.0) - seconds, 4)
        self._stage = outer  # after an error the stage stays: events about the error name it

    def _report(
        self,
        share: float,
        *,
        kind: str = "progress",
        stage: Stage | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the progress within the stage (`share`, 0..1), at most once per `_PROGRESS_EVERY_SECONDS`."""
        self._control.check()
        self._share = share
        now = time.monotonic()
        if kind == "progress" and share < 1.0 and now - self._reported_at < _PROGRESS_EVERY_SECONDS:
            return
        self._reported_at = now
        stage = stage or self._stage
        progress = self._progress(stage, share)
        self._require_lease(
            self._store.progress(
                self._job.id, self._token, stage=stage, progress=progress, kind=kind, data=data or {}
            )
        )

    def _progress(self, stage: Stage, share: float) -> float:
        """The job's progress, 0 to 1, at this share of a stage."""
        if self._in_place is not None:
            return self._in_place.progress(stage, share)
        begin, end = STAGE_PROGRESS[stage]
        return begin + share * (end - begin)

    @contextmanager
    def _faults_reported(self) -> Iterator[None]:
        """Report an out-of-memory or values that are not finite if they end the job."""
        try:
            with translated_device_errors(lambda: self._stage.value):
                yield
        except OutOfMemory as error:
            error.free_bytes = self._engine.free_bytes
            if not error.is_reported:
                self._event("oom", {"stage": error.stage, **self._engine.memory_report()})
            raise
        except NonFiniteValues as error:
            self._event("nonfinite", found_json(error))
            raise

    def _event(self, kind: str, data: Mapping[str, Any]) -> None:
        self._control.check()
        fields = {"stage": self._stage.value, **data}
        self._require_lease(self._store.event(self._job.id, self._token, kind, fields))

    def _require_lease(self, written: bool) -> None:
        """Raise `JobLost` if the store did not write, because the job's token is no longer valid."""
        if not written:
            self._control.interrupt(JobLost)
            self._control.check()
