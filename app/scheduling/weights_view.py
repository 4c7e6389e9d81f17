"""What a job's plan says about the model's weights: where they would be on a device while the job runs.

Arithmetic on stored numbers; must not know torch or HTTP.
"""

from adaptive.errors import DoesNotFit
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.weight_placement import Placement
from adaptive.types import VideoShape
from app.jobs import JobSpec, Json
from app.models.entries import ModelEntry
from app.models.requirements import (
    ModelRequirements,
    choose_placement,
    denoise_key,
    denoise_positions,
    placement_json,
)
from app.pipelines.frames import added_latent_frames
from app.scheduling.device_reports import learned_costs

_UNKNOWN_HOST_BYTES = 2**62  # only the worker knows how much memory its host has


def placement_views(
    spec: JobSpec,
    entry: ModelEntry,
    requirements: ModelRequirements | None,
    profile: MemoryProfile,
    device: Json,
    reserve_bytes: int,
) -> Json:
    """The plan's `placement`, `denoise_seconds` and `weights` for the job on `device`, if they are known.

    `placement` is the fastest for the job's shape and guidance in the memory that is free now. `weights` is
    that of a job whose weights may be quantized: the loaded model's as it is, else the likely one.
    """
    may_round = entry.quantize is not None and not spec.exact_only
    loaded = device.get("loaded_placement") if device.get("loaded_model") == entry.name else None
    placed = _placement(spec, entry, requirements, profile, device, reserve_bytes, may_round=may_round)
    views: Json = {}
    if placed is not None and device.get("kind") != "cpu":
        views["placement"] = placement_json(placed)
    seconds = _denoise_seconds(spec, entry, profile, device, "resident" if placed is None else placed.kind)
    views["denoise_seconds"] = None if seconds is None else round(seconds, 3)
    if may_round and loaded:
        views["weights"] = dict(loaded)
    elif may_round and placed is not None:
        views["weights"] = placement_json(placed)
    return views


def _denoise_seconds(
    spec: JobSpec, entry: ModelEntry, profile: MemoryProfile, device: Json, placement: str
) -> float | None:
    """Predicted seconds of all steps; None before the device has denoised with the model so placed."""
    guided = spec.guidance_scale > 1
    video = VideoShape(spec.num_frames, spec.height, spec.width)
    added = added_latent_frames(entry.pipeline, spec)
    positions = denoise_positions(profile, video, guided=guided, added_frames=added)
    known = learned_costs(device).denoise
    seconds = known.step_seconds(denoise_key(entry, placement), positions)
    return None if seconds is None else seconds * spec.num_inference_steps


def _placement(
    spec: JobSpec,
    entry: ModelEntry,
    requirements: ModelRequirements | None,
    profile: MemoryProfile,
    device: Json,
    reserve_bytes: int,
    *,
    may_round: bool,
) -> Placement | None:
    if requirements is None or entry.placement != "auto" or device.get("free_bytes") is None:
        return None
    held = int(device.get("own_bytes") or 0) if device.get("loaded_model") else 0
    try:
        return choose_placement(
            requirements.with_loras(spec.loras).with_frames(added_latent_frames(entry.pipeline, spec)),
            entry,
            profile,
            VideoShape(spec.num_frames, spec.height, spec.width),
            device_budget_bytes=max(0, int(device["free_bytes"]) + held - reserve_bytes),
            host_budget_bytes=_UNKNOWN_HOST_BYTES,
            exact_only=not may_round,
            on_host=device.get("kind") == "cpu",
            guided=spec.guidance_scale > 1,
            costs=learned_costs(device),
        )
    except DoesNotFit:
        return None
