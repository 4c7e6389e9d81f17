"""Whether a model's default video fits the devices of this service, and how: for cards and tables of models.

Arithmetic on stored numbers with everything else gone from the device; must not know torch or HTTP.
`ModelCards` adds where the weights are.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from adaptive.errors import AdaptiveError, DoesNotFit
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.planner import Policy, plan_decode
from adaptive.planning.weight_placement import HOST_IS_SHORT, PlacementKind
from adaptive.types import MemoryReading, VideoShape
from app.config import Settings
from app.jobs import Json, WorkerRow
from app.models.downloads.storage import storage_of
from app.models.entries import ModelEntry
from app.models.requirements import ModelRequirements, choose_placement
from app.units import format_bytes

LOOK_SECONDS = 5.0
_UNKNOWN_HOST_BYTES = 2**62
_RICHEST = list(PlacementKind)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device's memory in bytes, and that of its host. `kind` is cuda, cpu or another of torch's."""

    name: str
    kind: str
    total_bytes: int
    host_bytes: int


def fits_here(
    entry: ModelEntry,
    profile: MemoryProfile | None,
    requirements: ModelRequirements | None,
    devices: Iterable[DeviceMemory],
    reserve_bytes: int,
) -> Json | None:
    """How the model's default video fits the best of the devices; None if that is not known.

    `fits` says whether; `detail` is a sentence with the numbers, `placement` and `decode` name the way.
    """
    if profile is None or requirements is None:
        return None
    found: list[Json] = []
    refused: list[Json] = []
    for device in devices:
        try:
            found.append(_fitted(entry, profile, requirements, device, reserve_bytes))
        except AdaptiveError as refusal:
            told = {"fits": False, "device": device.name, "placement": None, "decode": None}
            refused.append({**told, "detail": _refusal(refusal, device)})
    if found:
        return min(found, key=lambda one: _RICHEST.index(one["placement"]))
    return refused[0] if refused else None


def _refusal(refusal: AdaptiveError, device: DeviceMemory) -> str:
    if not isinstance(refusal, DoesNotFit):
        return str(refusal)
    giver = "this machine's memory" if refusal.what.startswith(HOST_IS_SHORT) else device.name
    needed, budget = format_bytes(refusal.needed_bytes), format_bytes(refusal.budget_bytes)
    if needed == budget:
        needed, budget = f"{refusal.needed_bytes:,} bytes", f"{refusal.budget_bytes:,} bytes"
    return f"{refusal.what} needs {needed}, {giver} gives {budget}"


def _fitted(
    entry: ModelEntry,
    profile: MemoryProfile,
    requirements: ModelRequirements,
    device: DeviceMemory,
    reserve_bytes: int,
) -> Json:
    given = entry.defaults
    video = VideoShape(given.num_frames, given.height, given.width)
    budget = max(0, device.total_bytes - reserve_bytes)
    placement = choose_placement(
        requirements,
        entry,
        profile,
        video,
        device_budget_bytes=budget,
        host_budget_bytes=device.host_bytes,
        on_host=device.kind == "cpu",
    )
    resident = placement.kind is PlacementKind.RESIDENT
    held = sum(each.weight_bytes for each in requirements.components if resident or each.name == "vae")
    free = max(0, device.total_bytes - held)
    reading = MemoryReading(device.name, free, device.total_bytes, 0, 0, 0, "scripted")
    shape = profile.traits.latent_shape(video)
    plan = plan_decode(profile, shape, reading, Policy(reserve_bytes=reserve_bytes))
    peak = max(placement.device_bytes, held + plan.predicted.upper_bytes)
    return {
        "fits": True,
        "device": device.name,
        "placement": placement.kind.value,
        "decode": plan.strategy.value,
        "detail": f"{format_bytes(peak)} at most of {format_bytes(device.total_bytes)} on {device.name}",
    }


class ModelCards:
    """Storage and fit of each configured model, for a process that is asked often; asks no hub."""

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, ModelEntry],
        workers: Callable[[], Iterable[WorkerRow]],
        load_profile: Callable[[ModelEntry], MemoryProfile | None],
        load_requirements: Callable[[ModelEntry], ModelRequirements | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._models = models
        self._workers = workers
        self._load_profile = load_profile
        self._load_requirements = load_requirements
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at: float | None = None
        self._found: dict[str, Json] = {}

    def all(self) -> dict[str, Json]:
        """`storage` and `fits_here` by model, at most `LOOK_SECONDS` old."""
        with self._lock:
            now = self._clock()
            if self._looked_at is None or now - self._looked_at >= LOOK_SECONDS:
                devices = list(self._devices())
                self._found = {name: self._card(entry, devices) for name, entry in self._models.items()}
                self._looked_at = self._clock()
            return self._found

    def _card(self, entry: ModelEntry, devices: list[DeviceMemory]) -> Json:
        requirements = self._load_requirements(entry)
        profile = None if requirements is None else self._load_profile(entry)
        fit = fits_here(entry, profile, requirements, devices, self._settings.reserve_bytes)
        return {"storage": storage_of(entry, self._settings).as_json(), "fits_here": fit}

    def _devices(self) -> Iterator[DeviceMemory]:
        for worker in self._workers():
            told = worker.device
            if told.get("total_bytes"):
                host = int(told.get("host_total_bytes") or _UNKNOWN_HOST_BYTES)  # of an earlier version
                total, kind = int(told["total_bytes"]), str(told.get("kind"))
                yield DeviceMemory(str(told.get("name")), kind, total, host)
