"""Whether a job can ever run, and how it would be decoded now. Arithmetic on stored profiles; no torch, no
HTTP.

The plan given at submission is provisional: the worker plans again, from the memory it then sees. What is
final is a refusal: a job is only refused when no known device could hold its smallest allowed chunk with
everything else gone.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from adaptive.errors import AdaptiveError, DoesNotFit
from adaptive.memory import MemoryProfile
from adaptive.planner import PlanInputs, Policy, Rung, largest_shape_that_fits, plan_decode, rungs
from adaptive.residuals import Residuals
from adaptive.types import DecodePlan, LatentShape, MemoryReading, SpatialTiles, VideoShape
from app.config import ModelEntry
from app.jobs import JobSpec, Json, WorkerRow

LoadProfile = Callable[[ModelEntry], MemoryProfile | None]


class ProfilePending(AdaptiveError):
    """The model's memory profile is still being made."""


class FitsNowhere(AdaptiveError):
    """No known device could hold the job, or the request's own budget cannot. Bytes; `largest` would fit.

    `fits_approximately`: it would fit as it is, if the request allowed pixels to change.
    """

    def __init__(
        self,
        needed_bytes: int,
        available_bytes: int,
        largest: VideoShape | None,
        limit: str,
        *,
        fits_approximately: bool = False,
    ) -> None:
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.largest = largest
        self.fits_approximately = fits_approximately
        hint = "; with exact_only=false it would fit, approximately" if fits_approximately else ""
        super().__init__(
            f"decoding needs {needed_bytes:,} bytes in its smallest allowed chunk; "
            f"{limit} is {available_bytes:,} bytes{hint}"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """A job that can run: the least memory its decode needs, the plan as of now, and every allowed way to
    decode.
    """

    needed_bytes: int
    plan: Json
    rungs: tuple[Rung, ...]


@dataclass(frozen=True, slots=True)
class _Room:
    """The most memory a decode could get somewhere, and the margins that hold there."""

    available_bytes: int
    limit: str
    residuals: Residuals


@dataclass(frozen=True, slots=True)
class _Question:
    """A job's decode, as the planner takes it."""

    profile: MemoryProfile
    video: VideoShape
    shape: LatentShape
    policy: Policy
    size_multiple: int

    def ladder(self, budget_bytes: int, residuals: Residuals) -> tuple[Rung, ...]:
        inputs = PlanInputs(residuals=residuals)
        return rungs(self.profile, self.shape, budget_bytes, self.policy, inputs)

    def needed_bytes(self, residuals: Residuals) -> int:
        return min(rung.predicted.upper_bytes for rung in self.ladder(0, residuals))


class Admission:
    """Judges jobs by the stored profiles and by what the workers last said of their devices."""

    def __init__(
        self,
        models: Mapping[str, ModelEntry],
        load_profile: LoadProfile,
        workers: Callable[[], Iterable[WorkerRow]],
        *,
        reserve_bytes: int,
    ) -> None:
        self._models = models
        self._load_profile = load_profile
        self._workers = workers
        self._reserve_bytes = reserve_bytes

    def judge(self, spec: JobSpec) -> Verdict:
        """Plan the job's decode. Raises `ProfilePending`, `FitsNowhere`, or `UnsupportedVae` for a forced
        strategy that the VAE does not allow.
        """
        question = self._question(spec)
        devices = [worker.device for worker in self._workers() if _offers(worker, spec.model)]
        rooms = list(_rooms(spec, devices))
        needed = [question.needed_bytes(room.residuals) for room in rooms]
        fitting = [
            bytes_ for bytes_, room in zip(needed, rooms, strict=True) if bytes_ <= room.available_bytes
        ]
        if not fitting:
            widest = max(range(len(rooms)), key=lambda index: rooms[index].available_bytes)
            raise _refusal(question, needed[widest], rooms[widest])
        plan = self._provisional_plan(question, devices)
        ladder = question.ladder(int(plan.get("budget_bytes") or 0), rooms[0].residuals)
        return Verdict(min(fitting), {**plan, "needed_bytes": min(fitting)}, ladder)

    def _question(self, spec: JobSpec) -> _Question:
        entry = self._models[spec.model]
        profile = self._load_profile(entry)
        if profile is None:
            raise ProfilePending(spec.model)
        video = VideoShape(spec.video_frames, spec.height, spec.width)
        shape = profile.traits.latent_shape(video)
        return _Question(profile, video, shape, policy_of(spec, self._reserve_bytes), entry.size_multiple)

    def _provisional_plan(self, question: _Question, devices: list[Json]) -> Json:
        readings = [reading for device in devices if (reading := reading_of(device)) is not None]
        if not readings:
            detail = "no worker has reported its memory yet"
            return {"fits_now": None, "reason": "no_device", "detail": detail}
        reading = max(readings, key=lambda one: one.free_bytes)
        try:
            plan = plan_decode(question.profile, question.shape, reading, question.policy)
        except DoesNotFit as refusal:
            return {
                "fits_now": False,
                "reason": "waits_for_memory",
                "detail": f"{refusal}; the job waits until memory comes free",
                "device": reading.device,
                "free_bytes": reading.free_bytes,
                "budget_bytes": refusal.budget_bytes,
            }
        return {**plan_json(plan), "device": reading.device}


def policy_of(spec: JobSpec, reserve_bytes: int) -> Policy:
    """What the request allows, as the planner takes it."""
    return Policy(
        strategy=spec.decode_strategy,
        frames_per_chunk=spec.frames_per_chunk,
        exact_only=spec.exact_only,
        budget_bytes=spec.memory_budget_bytes,
        reserve_bytes=reserve_bytes,
    )


def plan_json(plan: DecodePlan) -> Json:
    """A plan as clients see it."""
    return {
        "fits_now": True,
        "strategy": plan.strategy,
        "frames_per_chunk": plan.frames_per_chunk,
        "latent_frames": plan.latent_frames,
        "tiles": tiles_json(plan.tiles),
        "exact": plan.exact,
        "reason": plan.reason,
        "detail": plan.detail,
        "predicted_peak_bytes": plan.predicted.upper_bytes,
        "predicted_live_bytes": plan.predicted.live_bytes,
        "predicted_seconds": plan.predicted_seconds,
        "budget_bytes": plan.budget_bytes,
        "free_bytes": plan.free_bytes,
    }


def tiles_json(tiles: SpatialTiles) -> Json:
    """Into how many parts each picture is cut, as clients see it."""
    return {"rows": tiles.rows, "columns": tiles.columns}


def rung_json(rung: Rung) -> Json:
    """One way to decode, as clients see it."""
    return {
        "strategy": rung.strategy,
        "frames_per_chunk": rung.frames_per_chunk,
        "tiles": tiles_json(rung.tiles),
        "exact": rung.exact,
        "predicted_peak_bytes": rung.predicted.upper_bytes,
        "fits_now": rung.fits,
    }


def reading_of(device: Json) -> MemoryReading | None:
    """A worker's last report as a memory reading; None where it said nothing of its memory."""
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


def _offers(worker: WorkerRow, model: str) -> bool:
    models = worker.device.get("models")
    return models is None or model in models


def _rooms(spec: JobSpec, devices: list[Json]) -> Iterable[_Room]:
    """Where the job could be decoded at best; a device that did not say how much it has is taken to have
    enough.
    """
    budget = spec.memory_budget_bytes
    for device in devices or [{"kind": "cpu"}]:
        known = device.get("capacity_bytes")
        capacity = 2**63 if known is None else int(known)
        residuals = Residuals(str(device.get("kind") or device.get("name") or "cpu"))
        if budget is not None and budget <= capacity:
            yield _Room(budget, "the request's memory_budget_bytes", residuals)
        else:
            yield _Room(capacity, "the most any device can give", residuals)


def _refusal(question: _Question, needed_bytes: int, room: _Room) -> FitsNowhere:
    largest = largest_shape_that_fits(
        question.profile,
        question.video,
        room.available_bytes,
        question.policy,
        residuals=room.residuals,
        size_multiple=question.size_multiple,
    )
    approximately = replace(question, policy=replace(question.policy, exact_only=False))
    fits = approximately.needed_bytes(room.residuals) <= room.available_bytes
    return FitsNowhere(needed_bytes, room.available_bytes, largest, room.limit, fits_approximately=fits)
