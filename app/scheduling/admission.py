"""Whether a job can ever run, and how it would be decoded now. Arithmetic on stored profiles; no torch, no
HTTP.

The plan given at submission is provisional: the worker plans again, from the memory it then sees. What is
final is a refusal: a job is only refused when no known device could hold its smallest allowed chunk with
everything else gone.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from adaptive.errors import AdaptiveError, DoesNotFit
from adaptive.memory.learned_costs import LearnedCosts
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.largest_shape import largest_shape_that_fits
from adaptive.planning.planner import (
    PlanInputs,
    Policy,
    Rung,
    budget_of,
    plan_decode,
    rungs,
    smallest_unforced,
)
from adaptive.planning.weight_placement import Stage
from adaptive.types import LatentShape, MemoryReading, VideoShape
from app.jobs import JobSpec, Json, WorkerRow
from app.models.entries import ModelEntry
from app.models.requirements import ModelRequirements
from app.scheduling.plan_view import plan_json
from app.scheduling.weights_view import weights_json

LoadProfile = Callable[[ModelEntry], MemoryProfile | None]
LoadRequirements = Callable[[ModelEntry], ModelRequirements | None]


_NEEDS = {
    Stage.PROMPT: "reading the prompt needs {:,} bytes with one component on the device at a time",
    Stage.DENOISE: "denoising needs {:,} bytes with one component on the device at a time",
    Stage.DECODE: "decoding needs {:,} bytes in its smallest allowed chunk",
}


class ProfilePending(AdaptiveError):
    """The model's memory profile is still being made."""


class FitsNowhere(AdaptiveError):
    """No known device could hold the job, or the request's own budget cannot. Bytes; `largest` would fit.

    `stage` is the one that does not: prompt, denoise or decode. `fits_approximately`: it would fit as it is,
    if the request allowed pixels to change. `forced` is the strategy that the request forces; `smallest` the
    way to decode that needs less, if it did not.
    """

    def __init__(
        self,
        needed_bytes: int,
        available_bytes: int,
        largest: VideoShape | None,
        limit: str,
        *,
        fits_approximately: bool = False,
        stage: Stage = Stage.DECODE,
        forced: str | None = None,
        smallest: Rung | None = None,
    ) -> None:
        self.stage = stage
        self.needed_bytes_unforced = None if smallest is None else smallest.predicted.upper_bytes
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.largest = largest
        self.fits_approximately = fits_approximately
        hint = "; with exact_only=false it would fit, approximately" if fits_approximately else ""
        if smallest is not None:
            least = f"{self.needed_bytes_unforced:,} bytes ({smallest.strategy})"
            hint = f"; with decode_strategy=auto it needs {least}{hint}"
        needs = _NEEDS[stage] if forced is None else f"{forced} decoding needs {{:,}} bytes"
        super().__init__(f"{needs.format(needed_bytes)}; {limit} is {available_bytes:,} bytes{hint}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A job that can run: the least memory its decode needs, and the plan as of now. What only a dry run is
    asked for is worked out when it is.
    """

    needed_bytes: int
    plan: Json
    question: "_Question"
    budget_bytes: int | None
    inputs: PlanInputs

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Every allowed way to decode, against the memory that is there now."""
        return self.question.ladder(self.budget_bytes or 0, self.inputs)

    @property
    def largest(self) -> VideoShape | None:
        """The largest video of the job's length that would fit now; None where no device told its memory."""
        if self.budget_bytes is None:
            return None
        return self.question.largest(self.budget_bytes, self.inputs.residuals or LearnedMargins())


@dataclass(frozen=True, slots=True)
class _Room:
    """The most memory a decode could get somewhere, and the margins that hold there."""

    available_bytes: int
    limit: str
    residuals: LearnedMargins


@dataclass(frozen=True, slots=True)
class _Question:
    """A job's decode, as the planner takes it."""

    profile: MemoryProfile
    video: VideoShape
    shape: LatentShape
    policy: Policy
    size_multiple: int
    max_pixels: int
    only_shape: bool  # the model makes no others of this length

    def ladder(self, budget_bytes: int, inputs: PlanInputs) -> tuple[Rung, ...]:
        return rungs(self.profile, self.shape, budget_bytes, self.policy, inputs)

    def needed_bytes(self, residuals: LearnedMargins) -> int:
        ladder = self.ladder(0, PlanInputs(residuals=residuals))
        return min(rung.predicted.upper_bytes for rung in ladder)

    def largest(self, budget_bytes: int, residuals: LearnedMargins) -> VideoShape | None:
        """Of this length and aspect, up to what the model takes at all."""
        if self.only_shape:
            return self.video if self.needed_bytes(residuals) <= budget_bytes else None
        factor = max(1.0, math.sqrt(self.max_pixels / (self.video.height * self.video.width)))
        step = self.size_multiple
        height, width = (int(side * factor) // step * step for side in (self.video.height, self.video.width))
        return largest_shape_that_fits(
            self.profile,
            VideoShape(self.video.frames, height, width),
            budget_bytes,
            self.policy,
            residuals=residuals,
            size_multiple=self.size_multiple,
        )


class Admission:
    """Judges jobs by the stored profiles and by what the workers last said of their devices."""

    def __init__(
        self,
        models: Mapping[str, ModelEntry],
        load_profile: LoadProfile,
        workers: Callable[[], Iterable[WorkerRow]],
        *,
        reserve_bytes: int,
        load_requirements: LoadRequirements = lambda _entry: None,
    ) -> None:
        self._load_requirements = load_requirements
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
        requirements = self._load_requirements(self._models[spec.model])
        self._check_stages(spec, question, devices, requirements)
        verdict = _verdict(question, devices, min(fitting))
        return self._with_weights(spec, question, devices, requirements, verdict)

    def _with_weights(
        self,
        spec: JobSpec,
        question: _Question,
        devices: list[Json],
        requirements: ModelRequirements | None,
        verdict: Verdict,
    ) -> Verdict:
        """The same, telling in its plan of weights that may be rounded for the job."""
        entry = self._models[spec.model]
        planned_on = next((one for one in devices if one.get("name") == verdict.plan.get("device")), {})
        told = weights_json(spec, entry, requirements, question.profile, planned_on, self._reserve_bytes)
        return verdict if told is None else replace(verdict, plan={**verdict.plan, "weights": told})

    def _check_stages(
        self, spec: JobSpec, question: _Question, devices: list[Json], requirements: ModelRequirements | None
    ) -> None:
        """Refuse what no placement of the model's weights lets any device denoise. A device that did not say
        how much it has is taken to have enough.
        """
        totals = [device.get("total_bytes") for device in devices]
        if requirements is None or not totals or None in totals:
            return
        capacity = max(int(total or 0) for total in totals) - self._reserve_bytes
        short = requirements.short_of(question.shape, capacity, guided=spec.guidance_scale > 1)
        if short is not None:
            stage, needed_bytes = short
            limit = "the most any device can give"
            raise FitsNowhere(needed_bytes, max(0, capacity), None, limit, stage=stage)

    def _question(self, spec: JobSpec) -> _Question:
        entry = self._models[spec.model]
        profile = self._load_profile(entry)
        if profile is None:
            raise ProfilePending(spec.model)
        video = VideoShape(spec.video_frames, spec.height, spec.width)
        shape = profile.traits.latent_shape(video)
        return _Question(
            profile,
            video,
            shape,
            policy_of(spec, self._reserve_bytes),
            entry.size_multiple,
            entry.limits.max_pixels,
            bool(entry.shapes),
        )


def _verdict(question: _Question, devices: list[Json], needed_bytes: int) -> Verdict:
    """The plan on the device with most free memory."""
    readings = [(reading, device) for device in devices if (reading := reading_of(device)) is not None]
    if not readings:
        detail = "no worker has reported its memory yet"
        plan: Json = {"fits_now": None, "reason": "no_device", "detail": detail, "needed_bytes": needed_bytes}
        return Verdict(needed_bytes, plan, question, None, PlanInputs())
    reading, device = max(readings, key=lambda one: one[0].free_bytes)
    inputs = _inputs(device, question.profile)
    budget = budget_of(reading, question.policy)
    plan = {**_plan_now(question, reading, inputs), "device": reading.device, "needed_bytes": needed_bytes}
    return Verdict(needed_bytes, plan, question, budget, inputs)


def _plan_now(question: _Question, reading: MemoryReading, inputs: PlanInputs) -> Json:
    try:
        return plan_json(plan_decode(question.profile, question.shape, reading, question.policy, inputs))
    except DoesNotFit as refusal:
        return {
            "fits_now": False,
            "reason": "waits_for_memory",
            "detail": f"{refusal}; the job waits until memory comes free",
            "free_bytes": reading.free_bytes,
            "budget_bytes": refusal.budget_bytes,
        }


def _inputs(device: Json, profile: MemoryProfile) -> PlanInputs:
    """What the device's worker told with its heartbeat: what it learned, and what it could drop."""
    learned = _learned(device)
    return PlanInputs(
        residuals=learned.residuals,
        speed=learned.speeds.model(profile),
        droppable_bytes=int(device.get("droppable_bytes") or 0),
        reload_seconds=float(device.get("reload_seconds") or 0.0),
        may_fail=not learned.residuals.on_host,
    )


def _learned(device: Json) -> LearnedCosts:
    kind = str(device.get("kind") or device.get("name") or "cpu")
    return LearnedCosts.from_summary(kind, device.get("learned") or {})


def policy_of(spec: JobSpec, reserve_bytes: int) -> Policy:
    """What the request allows, as the planner takes it."""
    return Policy(
        strategy=spec.decode_strategy,
        frames_per_chunk=spec.frames_per_chunk,
        exact_only=spec.exact_only,
        budget_bytes=spec.memory_budget_bytes,
        reserve_bytes=reserve_bytes,
    )


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
        places = [(2**63 if known is None else int(known), _learned(device).residuals)]
        if device.get("host_capacity_bytes"):
            places.append((int(device["host_capacity_bytes"]), LearnedMargins("cpu")))
        for capacity, residuals in places:
            if budget is not None and budget <= capacity:
                yield _Room(budget, "the request's memory_budget_bytes", residuals)
            else:
                yield _Room(capacity, "the most any device can give", residuals)


def _refusal(question: _Question, needed_bytes: int, room: _Room) -> FitsNowhere:
    largest = question.largest(room.available_bytes, room.residuals)
    approximately = replace(question, policy=replace(question.policy, exact_only=False))
    fits = approximately.needed_bytes(room.residuals) <= room.available_bytes
    inputs = PlanInputs(residuals=room.residuals)
    unforced = smallest_unforced(question.profile, question.shape, question.policy, inputs)
    smaller = unforced is not None and unforced.predicted.upper_bytes < needed_bytes
    return FitsNowhere(
        needed_bytes,
        room.available_bytes,
        largest,
        room.limit,
        fits_approximately=fits,
        forced=None if question.policy.strategy == "auto" else question.policy.strategy,
        smallest=unforced if smaller else None,
    )
