"""Traces the memory profile of each configured model, so that the API can plan requests.

Runs in a process that ends after the start: a trace needs torch, but neither weights nor a device. It also
builds the built-in models.
"""

import json
import logging
import time
from collections.abc import Mapping

from adaptive.memory import published
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.published import library_versions
from app.config import Settings
from app.models import profiles
from app.models.components import ModelUnavailable, components_of
from app.models.entries import ModelEntry
from app.models.requirements import ModelRequirements

log = logging.getLogger(__name__)


def trace_missing(settings: Settings, models: Mapping[str, ModelEntry]) -> bool:
    """Trace and save every missing profile; returns whether all models have one now."""
    outcomes = [_trace_one(settings, entry) for entry in models.values()]
    return all(outcomes)


def write_shipped(settings: Settings, models: Mapping[str, ModelEntry]) -> None:
    """Rewrite the shipped profiles. For maintainers, after an update of torch or diffusers."""
    for entry in models.values():
        profile = _traced(settings, entry)
        path = profiles.shipped_path(entry)
        path.parent.mkdir(exist_ok=True)
        requirements = _trace_requirements(settings, entry, profile)
        name = _published_name(settings, entry)
        published.save(name, profile)
        document = {"versions": library_versions(), "demand": requirements.to_json(), "vae": name}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        log.info("profile_written path=%s", path)


def _published_name(settings: Settings, entry: ModelEntry) -> str:
    from adaptive.memory.profile_trace import published_name

    component = components_of(entry, settings)["vae"]
    return published_name(component.class_name, component.config, entry.decode_dtype)


def _traced(settings: Settings, entry: ModelEntry) -> MemoryProfile:
    from adaptive.memory.profile_trace import trace_profile

    component = components_of(entry, settings)["vae"]
    return trace_profile(component.class_name, component.config, entry.decode_dtype)


def _trace_requirements(settings: Settings, entry: ModelEntry, profile: MemoryProfile) -> ModelRequirements:
    from app.models.weight_sizes import trace_requirements

    channels = profile.traits.latent_channels
    return trace_requirements(components_of(entry, settings), channels, entry.dtype, entry.decode_dtype)


def _trace_one(settings: Settings, entry: ModelEntry) -> bool:
    if not _trace_vae(settings, entry):
        return False
    profile = profiles.load(settings, entry)
    if profile is not None and profiles.load_requirements(settings, entry) is None:
        try:
            profiles.save_requirements(settings, entry, _trace_requirements(settings, entry, profile))
        except Exception:  # admission then checks only the decode of its jobs
            log.exception("requirements_trace_failed model=%s", entry.name)
    return True


def _trace_vae(settings: Settings, entry: ModelEntry) -> bool:
    if profiles.load(settings, entry) is not None:
        return True
    started = time.monotonic()
    try:
        profile = _traced(settings, entry)
    except ModelUnavailable as error:
        log.error("profile_failed model=%s reason=%s", entry.name, error)
        return False
    traits = profile.traits
    configured = (entry.vae_class, entry.temporal_ratio, entry.first_frame_alone)
    found = (traits.vae_class, traits.temporal_ratio, traits.first_frame_alone)
    if configured != found or entry.size_multiple % traits.spatial_ratio:
        log.error(
            "model_misdescribed model=%s configured=%s traced=%s ratio=%d",
            entry.name,
            configured,
            found,
            traits.spatial_ratio,
        )
        return False
    profiles.save(settings, entry, profile)
    log.info("profile_ready model=%s seconds=%.1f", entry.name, time.monotonic() - started)
    return True
