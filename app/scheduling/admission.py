"""Decides whether a job can ever run, and plans how it would be decoded now.

Works on stored memory profiles and device reports; must not know torch or HTTP. The plan made at submission
is provisional: the worker plans again from the memory it then sees. A refusal is final. Admission refuses a
job only if no known device could hold its smallest allowed chunk with everything else gone.

Longer than 300 lines: a verdict, its plan and its refusal answer one question.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from adaptive.errors import AdaptiveError, DoesNotFit, UnsupportedVae
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.largest_shape import largest_shape_that_fits, largest_that_fits
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
from app.fields.roles import Role, role_of
from app.jobs import JobSpec, Json, WorkerRow
from app.models.entries import ModelEntry
from app.models.requirements import ModelRequirements
from app.pipelines.calls import form_of_class
from app.pipelines.frames import added_latent_frames
from app.scheduling.device_reports import (
    DecodeRoom,
    decode_rooms,
    memory_reading,
    plan_inputs,
    serves_model,
)
from app.scheduling.plan_view import plan_json
from app.scheduling.usable_profile import FindFault, LoadProfile, usable_profile
from app.scheduling.weights_view import placement_views

LoadRequirements = Callable[[ModelEntry], ModelRequirements | None]


_NEEDS = {
    Stage.PROMPT: "reading the prompt needs {:,} bytes with one component on the device at a time",
    Stage.DENOISE: "denoising needs {:,} bytes with one component on the device at a time",
    Stage.DECODE: "decoding needs {:,} bytes in its smallest allowed chunk",
}


class FitsNowhere(AdaptiveError):
    """No known device could hold the job, or the request's own memory budget cannot.

    `stage` is the first that does not fit: prompt, denoise or decode. `largest` is the largest video that
    fits. `fits_approximately`: the job would fit with exact_only=false. `forced` is the strategy that the
    request forces; `smallest` is the rung that would need less memory without it.
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
    """An admitted job: the least bytes its decode needs, and its plan at this moment.

    `rungs` and `largest` are computed on access, because only a dry run asks for them. `budget_bytes` is None
    if no device has reported its memory.
    """

    needed_bytes: int
    plan: Json
    question: "_Question"
    budget_bytes: int | None
    inputs: PlanInputs

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Every allowed rung, marked by whether it fits in the memory that is free now."""
        return self.question.rungs(self.budget_bytes or 0, self.inputs)

    @property
    def largest(self) -> VideoShape | None:
        """The largest video of the job's length that would fit now. None if no device reported its memory."""
        if self.budget_bytes is None:
            return None
        return self.question.largest(self.budget_bytes, self.inputs.residuals or LearnedMargins())


@dataclass(frozen=True, slots=True)
class _Question:
    """One job's decode in the planner's terms, and the model's limits on shapes.

    `decoded` are the latents of one decode: `shape`, those of the video, unless the pipeline decodes in
    place. Then it is the largest one's, the frames that the pipeline gathers have `kept_output_bytes`, and
    `of_size` asks the same for a video of another size.
    """

    profile: MemoryProfile
    video: VideoShape
    shape: LatentShape
    decoded: LatentShape
    kept_output_bytes: int
    policy: Policy
    size_multiple: int
    max_pixels: int
    only_shape: bool  # the model makes no other shape of this length
    of_size: Callable[[VideoShape], "_Question"] | None = None

    def rungs(self, budget_bytes: int, inputs: PlanInputs) -> tuple[Rung, ...]:
        return rungs(self.profile, self.decoded, budget_bytes, self.policy, self.with_kept(inputs))

    def with_kept(self, inputs: PlanInputs) -> PlanInputs:
        """The inputs, with room for the frames that the pipeline gathers."""
        return replace(inputs, kept_output_bytes=self.kept_output_bytes)

    def needed_bytes(self, residuals: LearnedMargins) -> int:
        """Upper bound of the smallest allowed rung."""
        allowed = self.rungs(0, PlanInputs(residuals=residuals))
        return min(rung.predicted.upper_bytes for rung in allowed)

    def largest(self, budget_bytes: int, residuals: LearnedMargins) -> VideoShape | None:
        """The largest video of this length and aspect ratio that fits, up to the model's own limits."""
        if self.only_shape:
            return self.video if self.needed_bytes(residuals) <= budget_bytes else None
        factor = max(1.0, math.sqrt(self.max_pixels / (self.video.height * self.video.width)))
        step = self.size_multiple
        height, width = (int(side * factor) // step * step for side in (self.video.height, self.video.width))
        limit = VideoShape(self.video.frames, height, width)
        if self.of_size is not None:
            return largest_that_fits(limit, step, partial(self._fits_at, budget_bytes, residuals))
        return largest_shape_that_fits(
            self.profile,
            limit,
            budget_bytes,
            self.policy,
            residuals=residuals,
            size_multiple=step,
        )

    def _fits_at(self, budget_bytes: int, residuals: LearnedMargins, video: VideoShape) -> bool:
        """Whether the job's video of that size, whose pipeline decodes in place, fits."""
        assert self.of_size is not None
        try:
            return self.of_size(video).needed_bytes(residuals) <= budget_bytes
        except UnsupportedVae:
            return False  # tiles are forced, and the picture is too small for them


class Admission:
    """Decides about jobs from the stored profiles and the workers' last device reports."""

    def __init__(
        self,
        models: Mapping[str, ModelEntry],
        load_profile: LoadProfile,
        workers: Callable[[], Iterable[WorkerRow]],
        *,
        reserve_bytes: int,
        load_requirements: LoadRequirements = lambda _entry: None,
        find_fault: FindFault = lambda _entry: None,
    ) -> None:
        self._load_requirements = load_requirements
        self._find_fault = find_fault
        self._models = models
        self._load_profile = load_profile
        self._workers = workers
        self._reserve_bytes = reserve_bytes

    def admit(self, spec: JobSpec) -> Verdict:
        """Admit the job and plan its decode.

        Raises `ModelUnavailable` for a model whose files cannot be loaded, `ProfilePending`, `FitsNowhere`,
        or `UnsupportedVae` for a forced strategy that the VAE does not support.
        """
        question = self._question(spec)
        devices = [worker.device for worker in self._workers() if serves_model(worker, spec.model)]
        if self._models[spec.model].in_place_because is not None:  # who denoises its jobs decodes them, too
            devices = [device for device in devices if role_of(device) is not Role.DECODE]
        rooms = list(decode_rooms(spec, devices))
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
        """The same verdict; its plan says where the weights would be while the job runs."""
        entry = self._models[spec.model]
        planned_on = next((one for one in devices if one.get("name") == verdict.plan.get("device")), {})
        views = placement_views(spec, entry, requirements, question.profile, planned_on, self._reserve_bytes)
        return replace(verdict, plan={**verdict.plan, **views})

    def _check_stages(
        self, spec: JobSpec, question: _Question, devices: list[Json], requirements: ModelRequirements | None
    ) -> None:
        """Raise `FitsNowhere` if no placement of the model's weights lets any device denoise the job.

        A device that does not report its total memory counts as large enough.
        """
        totals = [device.get("total_bytes") for device in devices]
        if requirements is None or not totals or None in totals:
            return
        capacity = max(int(total or 0) for total in totals) - self._reserve_bytes
        added_frames = added_latent_frames(self._models[spec.model].pipeline, spec)
        short = (
            requirements.with_loras(spec.loras)
            .with_frames(added_frames)
            .short_of(question.shape, capacity, guided=spec.guidance_scale > 1)
        )
        if short is not None:
            stage, needed_bytes = short
            limit = "the most any device can give"
            raise FitsNowhere(needed_bytes, max(0, capacity), None, limit, stage=stage)

    def _question(self, spec: JobSpec) -> _Question:
        entry = self._models[spec.model]
        profile = usable_profile(entry, self._load_profile, self._find_fault)
        return _question_of(spec, entry, profile, self._reserve_bytes)


def _question_of(spec: JobSpec, entry: ModelEntry, profile: MemoryProfile, reserve_bytes: int) -> _Question:
    video = VideoShape(spec.video_frames, spec.height, spec.width)
    shape = profile.traits.latent_shape(video)
    question = _Question(
        profile,
        video,
        shape,
        shape,
        0,
        policy_of(spec, reserve_bytes),
        entry.size_multiple,
        entry.limits.max_pixels,
        bool(entry.shapes),
    )
    if entry.not_resumable_because is None:
        return question

    def of_size(video: VideoShape) -> _Question:
        sized = spec.model_copy(update={"height": video.height, "width": video.width})
        return _question_of(sized, entry, profile, reserve_bytes)

    rounds = form_of_class(entry.pipeline).rounds(spec, entry.call, entry.temporal_ratio)
    decoded = profile.traits.latent_shape(rounds.largest)
    kept_bytes = profile.output_bytes(decoded)
    return replace(question, decoded=decoded, kept_output_bytes=kept_bytes, of_size=of_size)


def _verdict(question: _Question, devices: list[Json], needed_bytes: int) -> Verdict:
    """The plan on the device with the most free memory."""
    readings = [(reading, device) for device in devices if (reading := memory_reading(device)) is not None]
    if not readings:
        detail = "no worker has reported its memory yet"
        plan: Json = {"fits_now": None, "reason": "no_device", "detail": detail, "needed_bytes": needed_bytes}
        return Verdict(needed_bytes, plan, question, None, PlanInputs())
    reading, device = max(readings, key=lambda one: one[0].free_bytes)
    inputs = plan_inputs(device, question.profile)
    budget = budget_of(reading, question.policy)
    plan = {**_plan_now(question, reading, inputs), "device": reading.device, "needed_bytes": needed_bytes}
    return Verdict(needed_bytes, plan, question, budget, inputs)


def _plan_now(question: _Question, reading: MemoryReading, inputs: PlanInputs) -> Json:
    try:
        inputs = question.with_kept(inputs)
        return plan_json(plan_decode(question.profile, question.decoded, reading, question.policy, inputs))
    except DoesNotFit as refusal:
        return {
            "fits_now": False,
            "reason": "waits_for_memory",
            "detail": f"{refusal}; the job waits until enough memory is free",
            "free_bytes": reading.free_bytes,
            "budget_bytes": refusal.budget_bytes,
        }


def policy_of(spec: JobSpec, reserve_bytes: int) -> Policy:
    """The planner's policy for what the request allows."""
    return Policy(
        strategy=spec.decode_strategy,
        frames_per_chunk=spec.frames_per_chunk,
        exact_only=spec.exact_only,
        budget_bytes=spec.memory_budget_bytes,
        reserve_bytes=reserve_bytes,
    )


def _refusal(question: _Question, needed_bytes: int, room: DecodeRoom) -> FitsNowhere:
    largest = question.largest(room.available_bytes, room.residuals)
    approximately = replace(question, policy=replace(question.policy, exact_only=False))
    fits = approximately.needed_bytes(room.residuals) <= room.available_bytes
    inputs = question.with_kept(PlanInputs(residuals=room.residuals))
    unforced = smallest_unforced(question.profile, question.decoded, question.policy, inputs)
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
