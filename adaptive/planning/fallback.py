"""What comes next when memory changes in the middle of a decode: smaller cuts after a failure, larger ones
later.

Owns the questions that a running decode asks of the planner. Must not know: torch, streams, events.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

from adaptive.errors import DoesNotFit, UnsupportedVae
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.planner import PlanInputs, Policy, plan_decode, rungs
from adaptive.planning.policy import cuts
from adaptive.types import Cut, LatentShape, MemoryReading, Strategy


class FallbackOrder:
    """The cuts of one decode: of `shape` by a VAE with `profile`, under `policy`."""

    def __init__(
        self, profile: MemoryProfile, shape: LatentShape, policy: Policy, inputs: PlanInputs
    ) -> None:
        self._profile = profile
        self._shape = shape
        self._policy = replace(policy, frames_per_chunk=None)  # a forced size may shrink
        self._inputs = replace(inputs, droppable_bytes=0)  # what the plan dropped is gone by now

    def below(self, failed: Cut) -> list[Cut]:
        """Cuts to try after `failed`, next first. A forced strategy stays itself."""
        if self._policy.strategy in (Strategy.BATCHED, Strategy.PER_FRAME):
            return []
        try:
            found = cuts(self._profile, self._shape, self._policy)
        except UnsupportedVae:  # only the size that was forced can be had
            return []
        return sorted((cut for cut in found if cut.order > failed.order), key=lambda cut: cut.order)

    def after(
        self, failed: Cut, usable: Callable[[Cut], bool], reading: MemoryReading, held_bytes: int
    ) -> Cut | None:
        """The cut to go on with where `failed` ran out of memory: an exact one while there is any usable.

        Where no bound lets one fit, the least: a bound that is too careful must not end a decode.
        """
        below = [cut for cut in self.below(failed) if usable(cut)]
        group = [cut for cut in below if cut.exact] or below
        if not group:
            return None
        policy = replace(self._policy, exact_only=group[0].exact)
        fits = self._fitting(policy, reading, held_bytes, group[0])
        if fits in group:
            return fits
        least = self.least() if group[0].exact else group[-1]
        return least if least in group else group[-1]

    def instead(self, tried: Collection[Cut], room_bytes: int | None = None) -> Cut | None:
        """The exact cut of whole pictures, of those not `tried`, that is expected to need least, and no more
        than `room_bytes`, if given. None where there is no such, or the way is forced.
        """
        if self._policy.strategy != "auto":
            return None
        ladder = rungs(self._profile, self._shape, 0, self._exact, self._inputs, whole_pictures=True)
        rest = [rung for rung in ladder if rung.cut not in tried]
        least = min(rest, key=lambda rung: rung.predicted.expected_bytes, default=None)
        if least is None or (room_bytes is not None and least.predicted.expected_bytes > room_bytes):
            return None
        return least.cut

    def fitting(self, reading: MemoryReading, held_bytes: int, at_most: Cut) -> Cut | None:
        """The fastest exact cut from `at_most` on that fits beside the decode's own state, or None."""
        return self._fitting(self._exact, reading, held_bytes, at_most)

    def least(self) -> Cut:
        """The exact cut that is expected to need least: a bound says as much of what is not known."""
        ladder = rungs(self._profile, self._shape, 0, self._exact, self._inputs)
        return min(ladder, key=lambda rung: rung.predicted.expected_bytes).cut

    @property
    def _exact(self) -> Policy:
        return replace(self._policy, exact_only=True)

    def _fitting(self, policy: Policy, reading: MemoryReading, held_bytes: int, at_most: Cut) -> Cut | None:
        inputs = replace(self._inputs, held_bytes=held_bytes, at_most=at_most)
        try:
            return plan_decode(self._profile, self._shape, reading, policy, inputs).cut
        except (DoesNotFit, UnsupportedVae):
            return None
