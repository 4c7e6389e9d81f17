"""Estimates when a job will be done, from how long finished jobs took and how many jobs are ahead of it.

The job's own decode and steps count with the seconds that are predicted for them. Reads the job table; must
not know HTTP.
"""

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from statistics import median

from app.jobs import STAGE_PROGRESS, Event, Job, JobStatus, Json, Stage, WorkerRow
from app.scheduling.device_reports import leave_decodes, takes
from app.scheduling.stage_times import Taken, download_seconds, shape_of_event, steps_of_event, whole_jobs
from app.store import JobStore, QueueFull, StoreError

REMEMBERED = 50  # jobs a model
UNKNOWN_SECONDS = 60.0
UNKNOWN_RETRY_SECONDS = 60
MAX_RETRY_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Expected:
    """Median seconds of a job, and of its decode and its denoise alone."""

    seconds: float
    decode_seconds: float
    denoise_seconds: float = 0.0

    def with_plan(self, plan: Json) -> float:
        """Seconds of a job whose decode and steps take what the plan predicts; medians where it does not."""
        seconds = self.seconds
        for usual, predicted in (
            (self.decode_seconds, plan.get("predicted_seconds")),
            (self.denoise_seconds, plan.get("denoise_seconds")),
        ):
            if predicted is not None:
                seconds = max(0.0, seconds - usual) + predicted
        return seconds


class RunTimes:
    """Seconds of work that recent jobs took, by model. Thread-safe; fed from the events table."""

    def __init__(self) -> None:
        self._taken: dict[str, deque[Taken]] = {}
        self._lock = threading.Lock()

    def apply(self, events: Sequence[Event]) -> None:
        """Learn from the jobs that succeeded."""
        with self._lock:
            for event in events:
                durations = _durations(event.data)
                if event.kind == "finished" and event.data["outcome"] == JobStatus.SUCCEEDED and durations:
                    recent = self._taken.setdefault(event.data["model"], deque(maxlen=REMEMBERED))
                    stages = (Stage.DECODING, Stage.DENOISING, Stage.LOADING)
                    decode, denoise, loading = (durations.get(stage, 0.0) for stage in stages)
                    shape = shape_of_event(event.data.get("video"))
                    steps, computed = steps_of_event(event.data.get("denoise"))
                    once = durations.get(Stage.DOWNLOADING, 0.0)  # the next job finds the model there
                    seconds = sum(durations.values()) - once
                    recent.append(Taken(seconds, decode, denoise, loading, shape, steps, computed))

    def state(self) -> Json:
        """Return what was learned, as JSON."""
        with self._lock:
            return {model: [list(astuple(one)) for one in recent] for model, recent in self._taken.items()}

    def restore(self, state: Json | None) -> None:
        """Go on from a state, from nothing if it is None. Raises `ValueError` if it is none."""
        with self._lock:
            self._taken = {}
            try:
                taken = {
                    model: deque((_restored(one) for one in recent), maxlen=REMEMBERED)
                    for model, recent in (state or {}).items()
                }
            except (AttributeError, TypeError, ValueError) as error:
                raise ValueError(f"no state of run times: {error!r}") from error
            self._taken = taken

    def expected(self, model: str | None = None) -> Expected | None:
        """Medians of the model's jobs, or of all jobs if the model has none. None if no job has finished."""
        with self._lock:
            recent = self._taken.get(model or "") or [one for many in self._taken.values() for one in many]
            if not recent:
                return None
            whole = whole_jobs(list(recent))
            return Expected(
                median(one.seconds for one in whole),
                median(one.decode_seconds for one in whole),
                median(one.denoise_seconds for one in whole),
            )

    def taken(self, model: str) -> list[Taken]:
        """What the model's recent jobs took, the newest last."""
        with self._lock:
            return list(self._taken.get(model, ()))


def _durations(data: Json) -> dict[str, float] | None:
    """Seconds by stage in the event of a job's end, with those of the worker that left the decode to it."""
    durations: dict[str, float] | None = data.get("durations")
    if not durations:
        return durations
    earlier: dict[str, float] = data.get("earlier_durations") or {}
    return {stage: durations.get(stage, 0.0) + earlier.get(stage, 0.0) for stage in {**earlier, **durations}}


def _restored(stored: Sequence[float | str]) -> Taken:
    """A stored entry; earlier versions kept neither the loading nor the shape and the steps."""
    seconds, decode, denoise, *more = stored
    loading, shape = (float(more[0]), str(more[1])) if more else (0.0, "")
    steps, computed = (int(each) for each in more[2:] or (0, 0))
    return Taken(float(seconds), float(decode), float(denoise), loading, shape, steps, computed)


@dataclass(frozen=True, slots=True)
class WaitingTimes:
    """Estimates of when jobs will be done and when the queue has room again."""

    run_times: RunTimes
    store: JobStore
    alive_workers: Callable[[], Sequence[WorkerRow]]
    is_awaited: Callable[[str], bool]  # whether the model must be downloaded first

    def seconds_for_job(self, job: Job) -> float | None:
        """Seconds until `job` is expected to be done.

        None if it has ended, if no job has finished yet, while nobody knows how long its model still
        downloads, or if it waits and every worker is paused.
        """
        return self.seconds_for_jobs([job])[0]

    def seconds_for_jobs(self, jobs: Sequence[Job]) -> list[float | None]:
        """As `seconds_for_job` of each; workers are looked at once."""
        waiting = [job for job in jobs if not job.status.is_terminal]
        expected = {model: self.run_times.expected(model) for model in {job.spec.model for job in waiting}}
        queued = [job for job in waiting if job.status is JobStatus.QUEUED and expected[job.spec.model]]
        free_in = {
            denoised: self._free(denoised=denoised)
            for denoised in {job.latents_path is not None for job in queued}
        }

        def seconds(job: Job) -> float | None:
            usual = None if job.status.is_terminal else expected[job.spec.model]
            if usual is None:
                return None
            if job.status is JobStatus.RUNNING:
                left = _remaining_seconds(job, usual)
                return None if left is None else round(left, 1)
            free = free_in[job.latents_path is not None]
            if free is None or self.is_awaited(job.spec.model):
                return None
            ahead = free.seconds_of_one(usual)
            turn = seconds_until_turn(job.queue_position or 1, free.in_seconds, ahead)
            return round(turn + _total_seconds(job, usual), 1)

        return [seconds(job) for job in jobs]

    def seconds_for_new_job(self, model: str, plan: Json) -> float | None:
        """Seconds until a job with `plan`, submitted now, would be done.

        None if no job has finished yet, if its model must be downloaded first, or if every worker is paused.
        """
        if self.is_awaited(model):
            return None
        expected = self.run_times.expected(model)
        free = None if expected is None else self._free(denoised=False)
        if expected is None or free is None:
            return None
        own = expected.with_plan(plan)
        position = self.store.counts()[JobStatus.QUEUED] + 1
        ahead = free.seconds_of_one(expected)
        return round(seconds_until_turn(position, free.in_seconds, ahead) + own, 1)

    def seconds_of_run(self, model: str, plan: Json) -> float:
        """Seconds that a job with `plan` is expected to run once it has started; a guess before the first
        job has finished."""
        expected = self.run_times.expected(model)
        return UNKNOWN_SECONDS if expected is None else expected.with_plan(plan)

    def retry_after_seconds(self, refusal: QueueFull) -> int:
        """Seconds until the queue is likely to have room, at most `MAX_RETRY_SECONDS`.

        Room appears when the next job ends or, if a key's own limit is reached, when the first of that key's
        jobs leaves the queue.
        """
        try:
            seconds = self._seconds_until_room(refusal.owner)
        except StoreError:
            seconds = None
        if seconds is None:
            return UNKNOWN_RETRY_SECONDS
        return min(MAX_RETRY_SECONDS, max(1, math.ceil(seconds)))

    def _seconds_until_room(self, owner: str | None) -> float | None:
        expected = self.run_times.expected()
        workers = sum(worker.state == "active" for worker in self.alive_workers())
        if expected is None or not workers:
            return None
        if owner is None:
            return expected.seconds / workers
        own = self.store.page(owner=owner, status=JobStatus.QUEUED, limit=1, newest_first=False)
        position = (own[0].queue_position if own else None) or 1
        return expected.seconds * -(-position // workers)

    def _free(self, *, denoised: bool) -> "_Free | None":
        """For each worker that takes jobs, those that are denoised or others, when its running job ends.

        One idle worker if none is known; None if all of them are paused. A worker does not count while
        nobody knows how long it downloads a model; None if there is no other.
        """
        alive = self.alive_workers()
        active = [worker for worker in alive if worker.state == "active"]
        left = {worker.id: 0.0 for worker in active if takes(worker, active, denoised=denoised)}
        if alive and not left:
            return None
        if not left:
            return _Free([0.0])
        for job in self.store.page(status=JobStatus.RUNNING, limit=2 * len(alive)):
            expected = self.run_times.expected(job.spec.model)
            if job.worker_id in left and expected is not None:
                seconds = _remaining_seconds(job, expected)
                if seconds is None:
                    del left[job.worker_id]
                else:
                    left[job.worker_id] = seconds
        return _Free(list(left.values()), denoised, leave_decodes(active)) if left else None


@dataclass(frozen=True, slots=True)
class _Free:
    """When each worker is free that takes jobs of one part: denoised ones, or those that are not.

    `leave_decodes`: they leave the decodes of the latter to others.
    """

    in_seconds: list[float]
    denoised: bool = False
    leave_decodes: bool = False

    def seconds_of_one(self, usual: Expected) -> float:
        """Seconds of a job's part that one of them does."""
        if not self.leave_decodes:
            return usual.seconds
        return usual.decode_seconds if self.denoised else max(0.0, usual.seconds - usual.decode_seconds)


def seconds_until_turn(position: int, free_in: Sequence[float], seconds: float) -> float:
    """Seconds until the job at `position` of the queue (from 1) starts.

    Workers become free in `free_in` seconds and take the next job then; every job ahead takes `seconds`.
    Rounds in which every worker certainly takes a job are skipped at once: the queue may be long, and each
    submission asks for this.
    """
    if seconds <= 0:
        return min(free_in)
    # The most jobs that one worker may take more than another.
    uneven = math.ceil((max(free_in) - min(free_in)) / seconds) + 1
    rounds = max(0, (position - 1) // len(free_in) - uneven)
    ahead = [free + rounds * seconds for free in free_in]
    heapq.heapify(ahead)
    for _ in range(position - 1 - rounds * len(ahead)):
        heapq.heapreplace(ahead, ahead[0] + seconds)
    return ahead[0]


def remaining_seconds(total_seconds: float, progress: float) -> float:
    """Seconds that a running job still takes at this progress (0 to 1)."""
    return total_seconds * (1 - progress)


def _remaining_seconds(job: Job, expected: Expected) -> float | None:
    before = download_seconds(job)
    if before is None:
        return None
    done = job.progress
    if job.handover is not None:  # only the decode is left
        begin, end = STAGE_PROGRESS[Stage.DECODING]
        done = min(1.0, max(0.0, (done - begin) / (end - begin)))
    return before + remaining_seconds(_total_seconds(job, expected), done)


def _total_seconds(job: Job, expected: Expected) -> float:
    """Seconds of the job; of its decode where it is denoised and waits, or another worker has denoised it."""
    plan = job.plan or {}
    if job.latents_path is None or (job.status is JobStatus.RUNNING and job.handover is None):
        return expected.with_plan(plan)
    planned: float | None = plan.get("predicted_seconds")
    return expected.decode_seconds if planned is None else planned
