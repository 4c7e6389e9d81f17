"""What the workers' last heartbeats say about their devices, in the planner's terms.

Owns the keys of a device report that planning reads. A report may lack any of them. Decides nothing about
jobs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adaptive.memory.learned_costs import LearnedCosts
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.planner import PlanInputs
from adaptive.types import MemoryReading
from app.fields.roles import Role, role_of
from app.jobs import JobSpec, Json, WorkerRow

UNKNOWN_CAPACITY_BYTES = 2**63


@dataclass(frozen=True, slots=True)
class DecodeRoom:
    """The most memory a decode could get on one device or its host, and the margins learned there.

    `limit` names what sets the bound, for error messages.
    """

    available_bytes: int
    limit: str
    residuals: LearnedMargins


def serves_model(worker: WorkerRow, model: str) -> bool:
    """Whether the worker offers the model. A worker whose report lists no models offers all."""
    models = worker.device.get("models")
    return models is None or model in models


def takes(worker: WorkerRow, workers: Sequence[WorkerRow], *, denoised: bool) -> bool:
    """Whether the worker takes jobs that are denoised, or jobs that are not, beside the live `workers`."""
    role = role_of(worker.device)
    if not denoised:
        return role.denoises
    return role is not Role.DENOISE or all(role_of(each.device) is Role.DENOISE for each in workers)


def leave_decodes(workers: Iterable[WorkerRow]) -> bool:
    """Whether those of the workers that denoise leave decodes to others."""
    return any(role_of(each.device) is Role.DECODE for each in workers)


def memory_reading(device: Json) -> MemoryReading | None:
    """A device report as a memory reading. None if the report does not say how much memory there is."""
    free, total = device.get("free_bytes"), device.get("total_bytes")
    if free is None or total is None:
        return None
    return MemoryReading(
        device=str(device.get("name", "")),
        free_bytes=int(free),
        total_bytes=int(total),
        reusable_bytes=0,
        own_bytes=int(device.get("own_bytes") or 0),
        other_bytes=int(device.get("other_bytes") or 0),
        source="heartbeat",
    )


def plan_inputs(device: Json, profile: MemoryProfile) -> PlanInputs:
    """What the device's worker has learned about this VAE, and the weights it could drop to the host."""
    learned = learned_costs(device)
    return PlanInputs(
        residuals=learned.residuals,
        speed=learned.speeds.model(profile),
        droppable_bytes=int(device.get("droppable_bytes") or 0),
        reload_seconds=float(device.get("reload_seconds") or 0.0),
        may_fail=not learned.residuals.on_host,
    )


def learned_costs(device: Json) -> LearnedCosts:
    """The learned costs in the report; those of a cold start if it has none."""
    kind = str(device.get("kind") or device.get("name") or "cpu")
    return LearnedCosts.from_summary(kind, device.get("learned") or {})


def decode_rooms(spec: JobSpec, devices: list[Json]) -> Iterable[DecodeRoom]:
    """Every place where the job could be decoded, with all other memory users gone.

    A device that does not report its capacity counts as large enough. The request's own budget bounds each
    place.
    """
    budget = spec.memory_budget_bytes
    for device in devices or [{"kind": "cpu"}]:
        known = device.get("capacity_bytes")
        capacity_bytes = UNKNOWN_CAPACITY_BYTES if known is None else int(known)
        places = [(capacity_bytes, learned_costs(device).residuals)]
        if device.get("host_capacity_bytes"):
            places.append((int(device["host_capacity_bytes"]), LearnedMargins("cpu")))
        for capacity, residuals in places:
            if budget is not None and budget <= capacity:
                yield DecodeRoom(budget, "the request's memory_budget_bytes", residuals)
            else:
                yield DecodeRoom(capacity, "the most any device can give", residuals)
