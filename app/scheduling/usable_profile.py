"""The memory profile to plan a request with, or why there is none: the model cannot be used, or not yet."""

from collections.abc import Callable

from adaptive.errors import AdaptiveError
from adaptive.memory.profile import MemoryProfile
from app.models.checks.faults import Fault
from app.models.components import ModelUnavailable
from app.models.entries import ModelEntry

LoadProfile = Callable[[ModelEntry], MemoryProfile | None]
FindFault = Callable[[ModelEntry], Fault | None]


class ProfilePending(AdaptiveError):
    """The model's memory profile is still being traced; the request can be repeated soon.

    `reason` says what has kept it from being traced so far, if anything.
    """

    def __init__(self, model: str, reason: str | None = None) -> None:
        self.reason = reason
        super().__init__(model)


def usable_profile(entry: ModelEntry, load_profile: LoadProfile, find_fault: FindFault) -> MemoryProfile:
    """The model's profile.

    Raises `ModelUnavailable` for a model that cannot be used until its files or its entry change, and
    `ProfilePending`.
    """
    fault = find_fault(entry)
    if fault is not None and not fault.transient:
        raise ModelUnavailable(f"model {entry.name} cannot be used: {fault.reason}")
    profile = load_profile(entry)
    if profile is None:
        raise ProfilePending(entry.name, None if fault is None else fault.reason)
    return profile
