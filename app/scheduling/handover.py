"""Decides which worker decodes a job that is denoised: the one that denoised it, or another one.

Two times are compared: that at which this job and the next one, which waits for the worker, are both done if
the worker decodes now, and if it leaves the decode to another one and denoises the next job meanwhile. Pure
arithmetic over seconds and device reports; who asks, and what then becomes of the job, is not known here.
Must not know torch or HTTP.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adaptive.errors import AdaptiveError
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.planner import plan_decode
from adaptive.types import MemoryReading, VideoShape
from app.fields.roles import Role, role_of
from app.jobs import JobSpec, Json, WorkerRow
from app.scheduling.admission import policy_of
from app.scheduling.device_reports import UNKNOWN_CAPACITY_BYTES, plan_inputs, serves_model
from app.store.roles.waiting import Decode

# A decode and a denoise of which nothing is known count as long as each other.
UNKNOWN_DECODE_SECONDS = 1.0
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another worker that could decode the job, in seconds from now.

    It begins in `free_in`, when what it runs and what waits before this job is done, and has to load the VAE
    first for `load_seconds`; 0 if that is loaded.
    """

    worker_id: str
    free_in: float
    decode_seconds: float
    load_seconds: float = 0.0

    @property
    def begins_in(self) -> float:
        """Seconds until a decode could begin."""
        return self.free_in + self.load_seconds

    @property
    def ends_in(self) -> float:
        """Seconds until this job would be decoded there."""
        return self.begins_in + self.decode_seconds


@dataclass(frozen=True, slots=True)
class Here:
    """What the worker that denoised the job could do now.

    `decode_seconds` is infinite if the decode does not fit its device. `next_denoise_seconds` is that of the
    next job, None if none waits, and `waiting` is how many do.
    """

    decode_seconds: float
    next_denoise_seconds: float | None = None
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether the decode is left to another worker, and the two times that were compared."""

    elsewhere: bool
    here_seconds: float
    there_seconds: float


def choose(here: Here, there: Elsewhere) -> Choice:
    """Compare the two.

    The decode is left to the other worker if all that is looked at ends earlier by that, and if this job
    loses no more by it than those that wait gain together. Without a job that waits, only this one counts.
    """
    own, denoise = here.decode_seconds, here.next_denoise_seconds
    if denoise is None:
        return Choice(there.ends_in < own, own, there.ends_in)
    # The next job's decode is done by the one of the two that is through with it first.
    next_if_here = own + denoise + min(own, max(0.0, there.begins_in - own - denoise) + there.decode_seconds)
    next_if_there = min(denoise + own, max(denoise, there.ends_in) + there.decode_seconds)
    both_if_here, both_if_there = max(own, next_if_here), max(there.ends_in, next_if_there)
    lost = there.ends_in - own
    gained = here.waiting * (next_if_here - next_if_there)
    return Choice(both_if_there < both_if_here and lost <= gained, both_if_here, both_if_there)


def may_decode(worker: WorkerRow, *, own_id: str, own_role: Role) -> bool:
    """Whether decodes may be left to that live worker."""
    if worker.id == own_id or worker.state != "active":
        return False
    role = role_of(worker.device)
    return role is Role.DECODE or (role is Role.BOTH and own_role is Role.DENOISE)


def capacity_of(worker: WorkerRow) -> int:
    """Bytes of the largest decode that fits the worker's device or, where that is allowed, its host."""
    capacities = [worker.device.get(name) for name in ("capacity_bytes", "host_capacity_bytes")]
    return max((int(each) for each in capacities if each is not None), default=UNKNOWN_CAPACITY_BYTES)


def decode_seconds(
    spec: JobSpec, profile: MemoryProfile | None, device: Json, reserve_bytes: int
) -> float | None:
    """Seconds of the job's decode on a device with its own memory free; None if its speed is not known.

    Infinite if the decode does not fit.
    """
    if profile is None:
        return None
    known = device.get("capacity_bytes")
    free_bytes = UNKNOWN_CAPACITY_BYTES if known is None else int(known) + reserve_bytes
    reading = MemoryReading(str(device.get("name", "")), free_bytes, free_bytes, 0, 0, 0, "scripted")
    shape = profile.traits.latent_shape(VideoShape(spec.video_frames, spec.height, spec.width))
    try:
        inputs = plan_inputs(device, profile)
        return plan_decode(profile, shape, reading, policy_of(spec, reserve_bytes), inputs).predicted_seconds
    except AdaptiveError:
        return None if device.get("host_capacity_bytes") else NEVER


def soonest(
    spec: JobSpec,
    needed_bytes: int,
    workers: Iterable[WorkerRow],
    decodes: Sequence[Decode],
    profile: MemoryProfile | None,
    reserve_bytes: int,
    *,
    usual_seconds: float,
) -> Elsewhere | None:
    """The other worker that would be through with the job first; None if none of `workers` could decode it.

    `decodes` are those that run, and those that wait before the job. `usual_seconds` stands for the seconds
    of a decode that are not known.
    """
    able = [each for each in workers if serves_model(each, spec.model) and needed_bytes <= capacity_of(each)]
    free_in = _free_in([each.id for each in able], decodes, usual_seconds)
    found = []
    for worker in able:
        seconds = decode_seconds(spec, profile, worker.device, reserve_bytes)
        loads = _load_seconds(worker.device, spec.model)
        seconds = usual_seconds if seconds is None else seconds
        found.append(Elsewhere(worker.id, free_in[worker.id], seconds, loads))
    found = [each for each in found if each.decode_seconds < NEVER]
    return min(found, key=lambda each: each.ends_in, default=None)


def _free_in(worker_ids: Sequence[str], decodes: Sequence[Decode], usual_seconds: float) -> dict[str, float]:
    """Seconds until each worker could begin with the job, if the earliest one takes the next that waits."""
    busy: Mapping[str, float] = {
        each.worker_id: each.left * (each.seconds or usual_seconds)
        for each in decodes
        if each.worker_id is not None
    }
    turns = [(busy.get(each, 0.0), each) for each in worker_ids]
    if not turns:
        return {}
    heapq.heapify(turns)
    for waiting in (each for each in decodes if each.worker_id is None):
        begins, worker_id = turns[0]
        heapq.heapreplace(turns, (begins + (waiting.seconds or usual_seconds), worker_id))
    return {worker_id: begins for begins, worker_id in turns}


def _load_seconds(device: Json, model: str) -> float:
    """Seconds to load the model there; 0 where it is loaded, or was never yet."""
    measured: float = (device.get("load_seconds") or {}).get(model, 0.0)
    return 0.0 if device.get("loaded_model") == model else measured
