"""Ranges in which jobs are expected to be done, from the stages of earlier jobs of their shapes.

Reads the job table; must not know HTTP.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.jobs import Job, JobStatus, WorkerRow
from app.scheduling.device_reports import leave_decodes, takes
from app.scheduling.eta import RunTimes, seconds_until_turn
from app.scheduling.stage_times import (
    Seconds,
    Taken,
    loading_range,
    remaining_range,
    shape_of,
    shape_text,
    stage_ranges,
    steps_left,
    whole_jobs,
    widened,
)
from app.store import JobStore


@dataclass(frozen=True, slots=True)
class _Devices:
    """For each worker that takes jobs: when it is free, and the model that it has loaded.

    `denoised`: those that take denoised jobs. `leave_decodes`: those that denoise leave decodes to others.
    """

    free_in: list[Seconds]
    loaded: tuple[str | None, ...]
    denoised: bool = False
    leave_decodes: bool = False

    def seconds_of(self, taken: Taken) -> float:
        """Seconds of a job's part that one of them does."""
        if not self.leave_decodes:
            return taken.seconds
        return taken.decode_seconds if self.denoised else max(0.0, taken.seconds - taken.decode_seconds)


@dataclass(frozen=True, slots=True)
class WaitingRanges:
    """Ranges of the seconds until jobs are done."""

    run_times: RunTimes
    store: JobStore
    alive_workers: Callable[[], Sequence[WorkerRow]]
    is_awaited: Callable[[str], bool]  # whether the model must be downloaded first

    def for_jobs(self, jobs: Sequence[Job]) -> list[Seconds | None]:
        """The range in which each job is expected to be done.

        None where no job of its shape, or of one that runs before it, has finished; and for a job that waits
        while every worker is paused, or until its model is on this machine.
        """
        parts = {not steps_left(job) for job in jobs if job.status is JobStatus.QUEUED}
        devices = {denoised: self._devices(denoised=denoised) for denoised in parts}
        return [self._range(job, devices.get(not steps_left(job))) for job in jobs]

    def for_new_job(self, model: str, width: int, height: int, frames: int, steps: int) -> Seconds | None:
        """As `for_jobs`, of a job that would be submitted now."""
        position = self.store.counts()[JobStatus.QUEUED] + 1
        shape = shape_text(width, height, frames)
        return self._waiting_range(model, shape, steps, position, self._devices(denoised=False))

    def _range(self, job: Job, devices: _Devices | None) -> Seconds | None:
        if job.status is JobStatus.RUNNING:
            return self._running_range(job)
        if job.status is not JobStatus.QUEUED:
            return None
        position = job.queue_position or 1
        return self._waiting_range(job.spec.model, shape_of(job), steps_left(job), position, devices)

    def _running_range(self, job: Job) -> Seconds | None:
        taken = self.run_times.taken(job.spec.model)
        ranges = stage_ranges(taken, shape_of(job), steps_left(job))
        return None if ranges is None else remaining_range(job, ranges, loading_range(taken))

    def _waiting_range(
        self, model: str, shape: str, steps: int, position: int, devices: _Devices | None
    ) -> Seconds | None:
        taken = self.run_times.taken(model)
        ranges = stage_ranges(taken, shape, steps)
        if ranges is None or devices is None or self.is_awaited(model):
            return None
        ahead = widened([devices.seconds_of(one) for one in whole_jobs(taken)])
        turn = Seconds(
            seconds_until_turn(position, [each.low for each in devices.free_in], ahead.low),
            seconds_until_turn(position, [each.high for each in devices.free_in], ahead.high),
        )
        loading = loading_range(taken)
        loads = Seconds(
            0.0 if model in devices.loaded else loading.low,
            0.0 if devices.loaded == (model,) * len(devices.loaded) else loading.high,
        )
        denoise, decode, rest = ranges
        return turn + loads + denoise + decode + rest

    def _devices(self, *, denoised: bool) -> _Devices | None:
        """None if no worker takes such jobs, or if a running job's shape is not known."""
        alive = self.alive_workers()
        able = [worker for worker in alive if worker.state == "active"]
        active = {worker.id: worker for worker in able if takes(worker, able, denoised=denoised)}
        left = dict.fromkeys(active, Seconds(0.0, 0.0))
        for job in self.store.page(status=JobStatus.RUNNING, limit=2 * len(alive)) if left else []:
            if job.worker_id in left:
                running = self._running_range(job)
                if running is None:
                    return None
                left[job.worker_id] = running
        loaded = tuple(worker.device.get("loaded_model") for worker in active.values())
        return _Devices(list(left.values()), loaded, denoised, leave_decodes(able)) if left else None
