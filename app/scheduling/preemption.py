"""Decides whether a running job gives its device to a waiting one of higher priority.

Pure arithmetic over seconds and device reports: who asks, and what then becomes of the two jobs, is not known
here. Must not know torch or HTTP.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.fields.roles import Role, role_of
from app.jobs import WorkerRow
from app.scheduling.device_reports import UNKNOWN_CAPACITY_BYTES, serves_model
from app.scheduling.eta import UNKNOWN_SECONDS, remaining_seconds
from app.store.backfill import MOST_PREEMPTIONS, Running, Urgent


@dataclass(frozen=True, slots=True)
class Switch:
    """What a switch at this step would bring and cost, in seconds.

    `waited_seconds` is how long the urgent job has been queued. `own_left_seconds` is the time until the
    running job would end; `others_free_in` are the times until other devices are free that could run the
    urgent job. `load_seconds` is the time to load the urgent job's model and then the running one's again; 0
    if both are the same. `save_seconds` is the time to write a checkpoint. `preemptions` is how often the
    running job has given way already.
    """

    waited_seconds: float
    own_left_seconds: float
    others_free_in: Sequence[float] = ()
    load_seconds: float = 0.0
    save_seconds: float = 0.0
    preemptions: int = 0

    @property
    def wait_seconds(self) -> float:
        """How much longer the urgent job waits without the switch."""
        return min(self.own_left_seconds, *self.others_free_in, float("inf"))


def gives_way(switch: Switch, after_seconds: float) -> bool:
    """Whether the running job gives way.

    It does if the urgent job would wait longer than `after_seconds` in all (0: never), and if the time that
    it would still wait is longer than what the switch costs.
    """
    if after_seconds <= 0 or switch.preemptions >= MOST_PREEMPTIONS:
        return False
    left = switch.wait_seconds
    return switch.waited_seconds + left > after_seconds and left > switch.load_seconds + switch.save_seconds


def own_left_seconds(step_seconds: float, step: int, steps: int, decode_seconds: float | None) -> float:
    """Seconds until a job ends that has done `step` of `steps` at this speed, and then decodes."""
    return step_seconds * (steps - step) + (decode_seconds or 0.0)


def others_free_in(
    urgent: Urgent, own_id: str, workers: Iterable[WorkerRow], running: Iterable[Running]
) -> list[float]:
    """Seconds until each other live device is free that could run the urgent job; 0 for an idle one.

    Infinite for one that downloads a model, as long as nobody knows how long that takes.
    """
    left: dict[str, float] = {}
    for job in running:
        expected = UNKNOWN_SECONDS if job.expected_seconds is None else job.expected_seconds
        before = float("inf") if job.download_seconds is None else job.download_seconds
        left[job.worker_id] = before + remaining_seconds(expected, job.progress)
    return [
        left.get(worker.id, 0.0)
        for worker in workers
        if worker.id != own_id and worker.state == "active" and _could_run(worker, urgent)
    ]


def _could_run(worker: WorkerRow, urgent: Urgent) -> bool:
    capacities = [worker.device.get(name) for name in ("capacity_bytes", "host_capacity_bytes")]
    known = [int(capacity) for capacity in capacities if capacity is not None]
    capacity_bytes = max(known, default=UNKNOWN_CAPACITY_BYTES)
    other_part = Role.DENOISE if urgent.is_denoised else Role.DECODE
    if role_of(worker.device) is other_part:
        return False
    return serves_model(worker, urgent.model) and urgent.needed_bytes <= capacity_bytes
