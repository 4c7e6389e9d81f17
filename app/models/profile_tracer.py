"""Traces the memory profile of each configured model, so that the API can plan requests.

Runs in a process that ends once every model has its profile, unless entries name files for components, which
may be replaced: a trace needs torch, but neither weights nor a
device. While a model cannot be traced, the process waits and looks again; it does not end and start anew. It
also builds the built-in models.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping

from adaptive.memory import published
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.published import library_versions
from app.config import Settings
from app.models import profiles
from app.models.checks.faults import Fault, record_fault
from app.models.checks.model_folder import check_model, signature_of
from app.models.components import ModelUnavailable, components_of
from app.models.entries import ModelEntry
from app.models.requirements import ModelRequirements

log = logging.getLogger(__name__)
LONGEST_WAIT_SECONDS = 300.0  # between two attempts at a model whose files do not change


class Tracing:
    """Traces every missing profile of the models; `step` goes on with those that cannot be traced yet.

    What cannot be traced is recorded for the other processes (`app.models.checks.faults`). It is tried again
    when a file of the model changes, and after a growing time if it may pass or lies at the hub. With
    `watch`, it is never done with a model whose entry names files for components, which may be replaced.
    """

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, ModelEntry],
        clock: Callable[[], float] = time.monotonic,
        *,
        watch: bool = False,
    ) -> None:
        self._watch = watch
        self._settings = settings
        self._clock = clock
        self._waiting = {name: _Waiting(entry) for name, entry in models.items()}

    @property
    def done(self) -> bool:
        """Whether every model has its profile."""
        return not self._waiting

    def step(self) -> None:
        """Trace what has no profile and is due. Imports torch only if there is something to trace."""
        for name, waiting in list(self._waiting.items()):
            signature = signature_of(waiting.entry, self._settings)
            now = self._clock()
            if waiting.signature == signature and now < waiting.due_at:
                continue
            fault = _trace_one(self._settings, waiting.entry)
            if fault is None:
                if self._watch and waiting.entry.parts:
                    waiting.traced(signature)
                else:
                    del self._waiting[name]
                record_fault(waiting.entry, self._settings, None)
                continue
            waiting.failed(fault, signature, self._clock())
            record_fault(waiting.entry, self._settings, fault)


class _Waiting:
    """A model that has no profile yet, and when to try it again."""

    def __init__(self, entry: ModelEntry) -> None:
        self.entry = entry
        self.signature: str | None = None  # of the model's files when it last failed
        self.due_at = 0.0
        self._fault: Fault | None = None
        self._failures = 0

    def traced(self, signature: str) -> None:
        """Note a success: only another file is traced anew."""
        self.signature, self.due_at = signature, math.inf
        self._fault, self._failures = None, 0

    def failed(self, fault: Fault, signature: str, now: float) -> None:
        """Note a failure; it is logged once for each reason."""
        self._failures = self._failures + 1 if signature == self.signature else 1
        self.signature = signature
        here = bool(signature) and not fault.transient  # only another file helps
        self.due_at = math.inf if here else now + min(LONGEST_WAIT_SECONDS, 2.5 * 2**self._failures)
        if fault != self._fault:
            log.error(
                "model_unavailable model=%s transient=%s reason=%s",
                self.entry.name,
                fault.transient,
                fault.reason,
            )
        self._fault = fault


def trace_missing(settings: Settings, models: Mapping[str, ModelEntry]) -> bool:
    """Trace and save every missing profile; returns whether all models have one now."""
    tracing = Tracing(settings, models)
    tracing.step()
    return tracing.done


def keep_tracing(
    settings: Settings, models: Mapping[str, ModelEntry], pause: Callable[[], None], *, watch: bool = False
) -> None:
    """Trace until every model has its profile. Between two looks at what is left, calls `pause`.

    `watch` as of `Tracing`.
    """
    tracing = Tracing(settings, models, watch=watch)
    while True:
        try:
            tracing.step()
        except OSError as error:  # the data folder is away or full: what was not saved is traced again
            log.warning("profiler_paused reason=%s", error)
        if tracing.done:
            return
        pause()


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
    return trace_requirements(
        components_of(entry, settings), channels, entry.dtype, entry.decode_dtype, entry.text_encoder_dtype
    )


def _trace_one(settings: Settings, entry: ModelEntry) -> Fault | None:
    """Trace what is missing of the model; returns why that is not possible."""
    if profiles.load(settings, entry) is None:
        try:
            check_model(entry, settings)
            fault = _trace_vae(settings, entry)
        except ModelUnavailable as error:
            return Fault(str(error), error.transient)
        except (OSError, MemoryError) as error:
            return Fault(f"its memory could not be traced: {error!r}", transient=True)
        except Exception as error:  # whatever its classes and configurations raise
            log.exception("profile_failed model=%s", entry.name)
            return Fault(f"its memory cannot be traced: {type(error).__name__}: {error}")
        if fault is not None:
            return fault
    profile = profiles.load(settings, entry)
    if profile is not None and profiles.load_requirements(settings, entry) is None:
        try:
            profiles.save_requirements(settings, entry, _trace_requirements(settings, entry, profile))
        except ModelUnavailable as error:
            if entry.parts and not error.transient:  # its files do not fit its base
                return Fault(str(error))
            log.warning("requirements_trace_failed model=%s reason=%s", entry.name, error)
        except Exception:  # admission then checks only the decode of its jobs
            log.exception("requirements_trace_failed model=%s", entry.name)
    return None


def _trace_vae(settings: Settings, entry: ModelEntry) -> Fault | None:
    started = time.monotonic()
    profile = _traced(settings, entry)
    traits = profile.traits
    described = {
        "vae_class": (entry.vae_class, traits.vae_class),
        "temporal_ratio": (entry.temporal_ratio, traits.temporal_ratio),
        "first_frame_alone": (entry.first_frame_alone, traits.first_frame_alone),
    }
    for key, (configured, found) in described.items():
        if configured != found:
            return Fault(f"its entry has {key} = {configured}, its VAE {found}: correct the entry")
    if entry.size_multiple % traits.spatial_ratio:
        ratio = traits.spatial_ratio
        return Fault(f"its entry has size_multiple = {entry.size_multiple}, no multiple of its VAE's {ratio}")
    profiles.save(settings, entry, profile)
    log.info("profile_ready model=%s seconds=%.1f", entry.name, time.monotonic() - started)
    return None
