"""The process that traces what each configured model's decode needs, so that requests can be planned.

Runs once at start and ends: a trace needs torch, but neither weights nor a device. Makes the built-in model
on the way.
"""

import logging
import time
from collections.abc import Mapping

from app import profiles
from app.components import ModelUnavailable, components_of
from app.config import ModelEntry, Settings

log = logging.getLogger(__name__)


def trace_missing(settings: Settings, models: Mapping[str, ModelEntry]) -> bool:
    """Trace and keep every profile that is not there yet; False where one could not be made."""
    outcomes = [_trace_one(settings, entry) for entry in models.values()]
    return all(outcomes)


def _trace_one(settings: Settings, entry: ModelEntry) -> bool:
    if profiles.load(settings, entry) is not None:
        return True
    from adaptive.profile import trace_profile

    started = time.monotonic()
    try:
        component = components_of(entry, settings)["vae"]
    except ModelUnavailable as error:
        log.error("profile_failed model=%s reason=%s", entry.name, error)
        return False
    profile = trace_profile(component.class_name, component.config, entry.dtype)
    traits = profile.traits
    told = (entry.vae_class, entry.temporal_ratio, entry.first_frame_alone)
    found = (traits.vae_class, traits.temporal_ratio, traits.first_frame_alone)
    if told != found or entry.size_multiple % traits.spatial_ratio:
        log.error(
            "model_misdescribed model=%s told=%s found=%s ratio=%d",
            entry.name,
            told,
            found,
            traits.spatial_ratio,
        )
        return False
    profiles.save(settings, entry, profile)
    log.info("profile_ready model=%s seconds=%.1f", entry.name, time.monotonic() - started)
    return True
