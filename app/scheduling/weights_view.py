"""What a job's plan says about weights that may be quantized: where they are, or would be, on a device.

Arithmetic on stored numbers; must not know torch or HTTP.
"""

from adaptive.errors import DoesNotFit
from adaptive.memory.profile import MemoryProfile
from adaptive.types import VideoShape
from app.jobs import JobSpec, Json
from app.models.entries import ModelEntry
from app.models.requirements import ModelRequirements, choose_placement, placement_json

_UNKNOWN_HOST_BYTES = 2**62  # only the worker knows how much memory its host has


def weights_json(
    spec: JobSpec,
    entry: ModelEntry,
    requirements: ModelRequirements | None,
    profile: MemoryProfile,
    device: Json,
    reserve_bytes: int,
) -> Json | None:
    """The JSON of the placement that the job would meet on `device`: the loaded model's, else the likely one.

    None if the job or the model's entry requires the weights as published, or if too little is known.
    """
    if entry.quantize is None or spec.exact_only:
        return None
    if device.get("loaded_model") == entry.name and device.get("loaded_placement"):
        return dict(device["loaded_placement"])
    if requirements is None or entry.placement != "auto" or device.get("free_bytes") is None:
        return None
    given = entry.defaults
    held = int(device.get("own_bytes") or 0) if device.get("loaded_model") else 0
    try:
        placement = choose_placement(
            requirements,
            entry,
            profile,
            VideoShape(given.num_frames, given.height, given.width),
            device_budget_bytes=max(0, int(device["free_bytes"]) + held - reserve_bytes),
            host_budget_bytes=_UNKNOWN_HOST_BYTES,
            exact_only=False,
            on_host=device.get("kind") == "cpu",
        )
    except DoesNotFit:
        return None
    return placement_json(placement)
