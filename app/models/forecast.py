"""Plans a model on a device that need not exist: placement and decode from configurations and bytes alone."""

from collections.abc import Sequence
from typing import Any

from adaptive.errors import DoesNotFit
from adaptive.memory.profile import LearnedMargins, MemoryProfile
from adaptive.planning.planner import Placement, PlanInputs, Policy, budget_of, plan_decode, rungs
from adaptive.planning.weight_placement import ComponentSize, PlacementKind
from adaptive.types import MemoryReading, VideoShape
from app.config import Settings
from app.models import profiles
from app.models.components import components_of
from app.models.entries import ModelEntry
from app.models.parts.part import Part
from app.models.requirements import choose_placement, placement_json
from app.models.weight_sizes import stored_requirements


class Unfeasible(Exception):
    """No placement or no decode plan fits; the message gives the bytes needed and available."""


def forecast(
    settings: Settings,
    entry: ModelEntry,
    video: VideoShape,
    *,
    device_bytes: int,
    host_bytes: int,
    exact_only: bool = True,
) -> dict[str, Any]:
    """Placement, decode plan and all rungs for a CUDA device with `device_bytes` free, as JSON values.

    `host_bytes` is the host's free memory. Without `exact_only`, approximate rungs are allowed, and quantized
    weights if the model's entry allows them. Raises `Unfeasible`, or `ModelUnavailable` if the model's
    configurations are missing.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)  # the command may run before any service
    components = components_of(entry, settings)
    profile = _profile(settings, entry, components["vae"].class_name, components["vae"].config)
    requirements = stored_requirements(settings, entry, components, profile.traits.latent_channels)
    try:
        placement = choose_placement(
            requirements,
            entry,
            profile,
            video,
            device_budget_bytes=device_bytes - settings.reserve_bytes,
            host_budget_bytes=host_bytes,
            exact_only=exact_only,
        )
        held = _weights_while_decoding(requirements.components, placement)
        return {
            "model": entry.name,
            "video": {"frames": video.frames, "height": video.height, "width": video.width},
            "components": [
                _component_json(each, components[each.name].part, entry) for each in requirements.components
            ],
            "placement": placement_json(placement),
            **_decode(
                profile,
                video,
                device_bytes - held,
                device_bytes,
                Policy(reserve_bytes=settings.reserve_bytes, exact_only=exact_only),
            ),
        }
    except DoesNotFit as refusal:
        raise Unfeasible(str(refusal)) from None


def _component_json(size: ComponentSize, part: Part | None, entry: ModelEntry) -> dict[str, Any]:
    return {
        "name": size.name,
        "format": entry.dtype_of(size.name) if part is None else part.label,
        "from_file": part is not None,
        "weight_bytes": size.weight_bytes,
        "working_bytes": size.working_bytes,
    }


def _profile(settings: Settings, entry: ModelEntry, vae_class: str, config: Any) -> MemoryProfile:
    kept = profiles.load(settings, entry)
    if kept is not None:
        return kept
    from adaptive.memory.profile_trace import trace_profile

    profile = trace_profile(vae_class, config, entry.decode_dtype)
    profiles.save(settings, entry, profile)
    return profile


def _weights_while_decoding(sizes: Sequence[ComponentSize], placement: Placement) -> int:
    """Bytes of the weights on the device during decoding: all if resident, else only the VAE's."""
    everything = placement.kind is PlacementKind.RESIDENT
    held = [each for each in sizes if everything or each.name == "vae"]
    quantized = placement.quantized
    return sum((each.quantized_bytes or 0) if each.name in quantized else each.weight_bytes for each in held)


def _decode(
    profile: MemoryProfile, video: VideoShape, free_bytes: int, total_bytes: int, policy: Policy
) -> dict[str, Any]:
    reading = MemoryReading("cuda:0", free_bytes, total_bytes, 0, 0, 0, "scripted")
    shape = profile.traits.latent_shape(video)
    plan = plan_decode(profile, shape, reading, policy)
    ladder = rungs(
        profile,
        shape,
        budget_of(reading, policy),
        policy,
        PlanInputs(residuals=LearnedMargins("cuda:0")),
    )
    return {
        "decode": {
            "strategy": plan.strategy.value,
            "frames_per_chunk": plan.frames_per_chunk,
            "exact": plan.exact,
            "reason": plan.reason,
            "detail": plan.detail,
            "predicted_peak_bytes": plan.predicted.upper_bytes,
            "budget_bytes": plan.budget_bytes,
        },
        "rungs": [
            {
                "strategy": rung.strategy.value,
                "frames_per_chunk": rung.frames_per_chunk,
                "strips": rung.tiles.rows,
                "exact": rung.strategy.exact,
                "upper_bytes": rung.predicted.upper_bytes,
                "live_bytes": rung.predicted.live_bytes,
                "fits": rung.fits,
            }
            for rung in ladder
        ],
    }
