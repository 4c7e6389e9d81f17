"""The worker's loop, one process a device: claims jobs, runs them one after another, renews its lease.

Owns the loop, the heartbeat and how each end of a job is recorded in the job table. `app.worker.job.run` runs
a job; `app.worker.engine` uses the device. A job's failure leaves the worker alive. A failure of the process
ends it, and the supervisor or the end of the lease requeues the job.
"""

import logging
import os
import queue
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType

from app.config import Settings
from app.fields.roles import Role
from app.jobs import Claim, JobStatus
from app.loops import Loop
from app.models.entries import ModelEntry
from app.models.loading import import_pipeline
from app.service.logs import bind_ids
from app.store import JobStore, StoreUnavailable
from app.store.roles.parts import WHOLE_QUEUE, Part
from app.worker.engine import Engine
from app.worker.job.control import (
    CannotDecode,
    JobCanceled,
    JobControl,
    JobHandedOver,
    JobLost,
    JobYielded,
    MemoryTaken,
    WorkerStopping,
)
from app.worker.job.failures import JobFailure
from app.worker.job.run import JobRun
from app.worker.job.watchdog import Current, Watchdog
from app.worker.roles.handing_over import takes_waiting_decode
from app.worker.roles.helpers import Helpers

log = logging.getLogger(__name__)

IDLE_POLL_SECONDS = 5.0  # the longest time between polls, where the database wakes the worker
# Failures of a worker that only decodes which are its device's or its host's, not the job's.
DECODED_ELSEWHERE = frozenset({"does_not_fit", "out_of_memory", "model_unavailable", "unsupported"})
BUSY_HEARTBEAT_SECONDS = 1.0  # the longest time until a running job sees its cancellation


class Worker:
    """Runs jobs on one device until stopped.

    SIGTERM: give the job back at its next step with its steps, or finish it if it decodes or cannot be
    resumed; then end. SIGINT or a second SIGTERM: requeue the job at its next step or chunk.
    """

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, ModelEntry],
        store: JobStore,
        engine: Engine,
        worker_id: str,
    ) -> None:
        self._settings = settings
        self._models = models
        self._store = store
        self._engine = engine
        self._id = worker_id
        in_place = [name for name, entry in models.items() if entry.in_place_because is not None]
        self._helpers = Helpers(settings, store, worker_id, engine.role, in_place=in_place)
        self._stopping = False
        self._paused = False
        self._beat_due_at = 0.0
        self._current: Current | None = None
        # A queue and not an event: a signal handler may put into it whatever the main thread is doing.
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._watchdog = Watchdog(
            lambda: self._current,
            lease_seconds=settings.lease_seconds,
            progress_timeout_seconds=settings.progress_timeout_seconds,
            grace_seconds=settings.heartbeat_seconds,
        )

    def run(self) -> None:
        """Claim and run jobs until a signal stops the worker. Call from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._store.register_worker(self._id, self._device())
        self._heartbeat().start()
        self._watchdog.start()
        is_woken = self._store.on_queued(lambda: self._wakes.put(None))
        idle_seconds = self._settings.poll_seconds
        log.info("worker_ready worker_id=%s device=%s", self._id, self._engine.device)
        imported = False
        while not self._stopping:
            claim = None if self._paused else self._claim()
            if claim is None and not imported:
                import_pipeline(next(iter(self._models.values())))  # so that the first job need not wait
            elif claim is None:
                self._sleep(idle_seconds)
                if is_woken:  # polls are for what wakes nobody: memory that became free, an expired lease
                    idle_seconds = min(2 * idle_seconds, max(IDLE_POLL_SECONDS, self._settings.poll_seconds))
            else:
                idle_seconds = self._settings.poll_seconds
            imported = True  # a job imports its pipeline itself
            while claim is not None:
                claim = self._run_job(claim)
        self._store.forget_worker(self._id, "worker_stopped")
        log.info("worker_stopped worker_id=%s", self._id)

    def _sleep(self, seconds: float) -> None:
        """Wait for a job or a signal, at most `seconds`."""
        with suppress(queue.Empty):
            self._wakes.get(timeout=seconds)
            while True:  # several that came together wake it once
                self._wakes.get_nowait()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        repeated = self._stopping
        self._stopping = True
        self._wakes.put(None)
        if self._current is None:
            return
        if number == signal.SIGINT or repeated:
            self._current[1].interrupt(WorkerStopping)
        else:
            self._current[1].hand_back()

    def _claim(self) -> Claim | None:
        self._watchdog.renewed(time.monotonic())
        try:
            claim = self._claim_of(self._helpers.part(list(self._models)))
            if claim is None and takes_waiting_decode(self._store, self._helpers, self._engine):
                claim = self._claim_of(WHOLE_QUEUE)
            return claim
        except StoreUnavailable as error:
            log.warning("claim_failed worker_id=%s reason=%s", self._id, error)
            return None

    def _claim_of(self, part: Part) -> Claim | None:
        models, own_bytes = list(self._models), self._engine.claimable_bytes
        if part is WHOLE_QUEUE or not self._engine.role.denoises:
            return self._claim_within(own_bytes, models, part)
        claim = self._claim_within(self._helpers.claimable_bytes(models, own_bytes), models, part)
        left = self._helpers.left_models(models)
        if claim is None and 0 < len(left) < len(models):  # only these may need more than it has itself
            claim = self._claim_within(self._helpers.claimable_bytes(left, own_bytes), left, part)
        return claim

    def _claim_within(self, capacity_bytes: int, models: list[str], part: Part) -> Claim | None:
        return self._store.claim(
            self._id,
            models=models,
            loaded_model=self._engine.loaded_model,
            capacity_bytes=capacity_bytes,
            lease_seconds=self._settings.lease_seconds,
            part=part,
        )

    def _run_job(self, claim: Claim) -> Claim | None:
        """Run a job to its end. Returns the claim of the job that it gave way to, if it did."""
        job_id, control = claim.job.id, JobControl()
        self._current = (claim, control)
        if self._stopping:  # the signal came between the claim and the line above
            control.interrupt(WorkerStopping)
        log.info("job_started job_id=%s worker_id=%s attempt=%d", job_id, self._id, claim.job.attempts)
        following: Claim | None = None
        try:
            with bind_ids(job_id=job_id, worker_id=self._id):
                outcome = self._outcome(claim, control)
        except JobYielded as yielded:
            outcome, following = "yielded", yielded.claim
            self._watchdog.renewed(time.monotonic())
        finally:
            self._current = None
        self._engine.clean_up()
        log.info("job_ended job_id=%s worker_id=%s outcome=%s", job_id, self._id, outcome)
        return following

    def _outcome(self, claim: Claim, control: JobControl) -> str:
        """Run the job and record how it ended; returns the outcome. An error that is not the job's own
        failure is raised and ends the process.
        """
        job = claim.job
        entry = self._models[job.spec.model]
        run = JobRun(
            self._settings, self._store, self._engine, entry, claim, control, self._models, self._helpers
        )
        try:
            result = run.run()
        except JobLost:
            return "lost"  # the worker that holds it now records how it ends
        except JobCanceled:
            self._store.finish(job.id, claim.token, status=JobStatus.CANCELED, durations=run.durations)
            return JobStatus.CANCELED
        except WorkerStopping:
            self._store.release(job.id, claim.token, "worker_stopped", refund=True)
            return "released"
        except MemoryTaken:
            self._store.release(job.id, claim.token, "memory_taken")
            return "released"
        except JobHandedOver:
            return "handed_over"
        except CannotDecode:
            return self._give_decode_back(claim, {"reason": "latents_unreadable"}, denoise_again=True)
        except JobFailure as failure:
            if self._engine.role is Role.DECODE and failure.error.code in DECODED_ELSEWHERE:
                return self._give_decode_back(claim, {"reason": failure.error.code, "error": str(failure)})
            log.warning(
                "job_failed job_id=%s code=%s message=%s", job.id, failure.error.code, failure.error.message
            )
            self._store.finish(
                job.id,
                claim.token,
                status=JobStatus.FAILED,
                error=failure.error,
                decode=run.decode,
                durations=run.durations,
            )
            return JobStatus.FAILED
        self._store.finish(
            job.id,
            claim.token,
            status=JobStatus.SUCCEEDED,
            decode=run.decode,
            result=result,
            durations=run.durations,
        )
        return JobStatus.SUCCEEDED

    def _give_decode_back(self, claim: Claim, data: dict[str, object], *, denoise_again: bool = False) -> str:
        """Leave a job that this worker, which only decodes, cannot decode to one that also denoises."""
        log.warning("decode_given_back job_id=%s reason=%s", claim.job.id, data["reason"])
        self._store.give_decode_back(claim.job.id, claim.token, data=data, denoise_again=denoise_again)
        return "given_back"

    def _device(self) -> dict[str, object]:
        return {**self._engine.device_report(), "models": list(self._models), "worker_pid": os.getpid()}

    def _heartbeat(self) -> Loop:
        """The loop of heartbeats. A lost device or a fault of ours ends the process: a worker that cannot
        report would hold its job and its device for nothing.
        """
        busy = min(BUSY_HEARTBEAT_SECONDS, self._settings.heartbeat_seconds)

        def turn() -> None:
            if self._current is not None or time.monotonic() >= self._beat_due_at:
                self._beat(self._current)
                self._beat_due_at = time.monotonic() + self._settings.heartbeat_seconds

        return Loop(
            "heartbeat",
            turn,
            every_seconds=busy,
            retry_seconds=busy,
            known=(StoreUnavailable,),
            is_fatal=lambda error: not isinstance(error, StoreUnavailable),
        )

    def _beat(self, current: Current | None) -> None:
        claim, control = current or (None, None)
        sent_at = time.monotonic()
        answer = self._store.heartbeat(
            self._id,
            device=self._device(),
            job_id=None if claim is None else claim.job.id,
            token=None if claim is None else claim.token,
            lease_seconds=self._settings.lease_seconds,
        )
        if self._paused and not answer.paused:
            self._wakes.put(None)
        self._paused = answer.paused
        if control is None:
            return
        if not answer.lost and current is self._current:
            self._watchdog.renewed(sent_at)
        if answer.lost:
            control.interrupt(JobLost)
        elif answer.cancel_requested:
            control.interrupt(JobCanceled)
