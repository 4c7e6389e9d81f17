"""Moves a loaded pipeline's weights to the placement that a job needs, without reading them again.

Owns how much of a device a placement may use while the model's own weights are on it, and a move that runs
out of memory. `app.models.loading` chooses the placement. Must not know the job table.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from adaptive.device.host import read_host
from adaptive.device.out_of_memory import is_out_of_memory, release_frames
from adaptive.device.probe import MemoryProbe
from adaptive.errors import DoesNotFit
from adaptive.planning.weight_placement import Placement, PlacementKind
from app.config import Settings
from app.models.entries import ModelEntry
from app.models.loading import PlacedJob, PlacedPipeline, placement_for


def weight_tensors(pipe: Any) -> Iterator[torch.Tensor]:
    """Parameters and buffers of all components, each once."""
    seen: set[int] = set()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor


def bytes_on(pipe: Any, device_type: str) -> int:
    """Bytes of the pipeline's weights on devices of that kind."""
    return sum(t.nbytes for t in weight_tensors(pipe) if t.device.type == device_type)


def placement_now(
    placed: PlacedPipeline,
    entry: ModelEntry,
    settings: Settings,
    device: torch.device,
    probe: MemoryProbe,
    job: PlacedJob,
) -> Placement | None:
    """The fastest placement for the job in the memory that is free now, the model's own weights included.

    None for a model that stays as it is: its entry names a placement, its weights are quantized, or the
    device is the host. Raises `DoesNotFit`.
    """
    if placed.plan is None or placed.quantized or device.type == "cpu":
        return None
    own_bytes = bytes_on(placed.pipe, device.type)
    budget_bytes = max(0, probe.read().free_bytes + own_bytes - settings.reserve_bytes)
    job = replace(job, host_bytes=bytes_on(placed.pipe, "cpu"))
    return placement_for(entry, settings, device, budget_bytes, job=job)


def is_placed(placed: PlacedPipeline, plan: Placement) -> bool:
    """Whether the weights are where the plan wants them."""
    held = placed.plan
    return held is not None and (placed.kind, held.group_offloaded) == (plan.kind.value, plan.group_offloaded)


def moved(
    placed: PlacedPipeline, plan: Placement, device: torch.device, probe: MemoryProbe
) -> tuple[PlacedPipeline, DoesNotFit | None]:
    """The pipeline after its move to `plan`.

    If the memory is taken meanwhile, it is in host memory instead, one component at a time on the device, and
    the second value says how much was missing.
    """
    try:
        return placed.moved(plan, device), None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release_frames(error)
    lean = replace(plan, kind=PlacementKind.MODEL_OFFLOAD, group_offloaded=())
    placed = placed.moved(lean, device)
    probe.release()
    free_bytes = probe.read().free_bytes
    needed_bytes = max(plan.device_bytes, free_bytes + 1)
    refusal = DoesNotFit("placing the weights", needed_bytes=needed_bytes, budget_bytes=free_bytes)
    return placed, refusal


def leaner_placement(placed: PlacedPipeline, device: torch.device) -> Placement | None:
    """The next placement with fewer weights on the device; None if there is none, or no room on the host.

    One that would free nothing now is left out.
    """
    if device.type == "cpu":
        return None
    pipe = placed.pipe
    on_device = [t.nbytes for t in weight_tensors(pipe) if t.device.type == device.type]
    kind = PlacementKind(placed.kind)
    if kind is PlacementKind.RESIDENT and sum(on_device) > read_host().free_bytes:
        return None
    order = list(PlacementKind)
    for lean in order[order.index(kind) + 1 :]:
        if lean is not PlacementKind.GROUP_OFFLOAD and (
            kind is PlacementKind.RESIDENT or _frees(pipe, device)
        ):
            return replace(lean_plan(placed), kind=lean, group_offloaded=())
        if lean is PlacementKind.GROUP_OFFLOAD and not placed.quantized:
            return replace(lean_plan(placed), kind=lean, group_offloaded=groupable(pipe))
    return None


def lean_plan(placed: PlacedPipeline) -> Placement:
    """The placement's plan; an empty one if its model's entry named the placement."""
    return placed.plan or Placement(PlacementKind(placed.kind), 0, 0, (), "after an out-of-memory")


def replaced(
    before: PlacedPipeline, now: PlacedPipeline, device: torch.device, probe: MemoryProbe
) -> tuple[PlacedPipeline, DoesNotFit | None]:
    """The placement from which the job after one that stepped down begins, and what is missing for it.

    It is the one before if no other is chosen for a job: the model's entry names it, or its weights are
    quantized. Else it is `now`.
    """
    if before.plan is not None and not before.quantized:
        return now, None
    kind = PlacementKind(before.kind)
    grouped = groupable(before.pipe) if kind is PlacementKind.GROUP_OFFLOAD else ()
    plan = before.plan or replace(lean_plan(before), kind=kind, group_offloaded=grouped)
    placed, refusal = moved(now, plan, device, probe)
    return (placed if refusal is not None else replace(placed, plan=before.plan)), refusal


def groupable(pipe: Any) -> tuple[str, ...]:
    """Names of the components that may be offloaded in groups."""
    parts = pipe.components.items()
    return tuple(name for name, part in parts if isinstance(part, torch.nn.Module) and name != "vae")


def is_divided(module: torch.nn.Module) -> bool:
    """Whether a module's weights are on more than one kind of device, as after a move that failed."""
    kinds = {t.device.type for t in (*module.parameters(), *module.buffers())}
    return len(kinds) > 1


def _frees(pipe: Any, device: torch.device) -> bool:
    """Whether more than one component has weights on the device."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    held = [any(t.device.type == device.type for t in part.parameters()) for part in parts]
    return sum(held) > 1
