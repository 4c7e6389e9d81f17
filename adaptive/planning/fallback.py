"""Which cut comes next when memory changes during a decode: a smaller one after a failure, or a larger one.

Owns the questions that a running decode asks the planner. It does not know torch, streams or events.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

from adaptive.errors import DoesNotFit, UnsupportedVae
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.planner import PlanInputs, Policy, Rung, plan_decode, rungs
from adaptive.planning.policy import cuts
from adaptive.types import Cut, LatentShape, MemoryReading, Strategy


class FallbackOrder:
    """The cuts that a decode of `shape` by a VAE with `profile` may change to under `policy`."""

    def __init__(
        self, profile: MemoryProfile, shape: LatentShape, policy: Policy, inputs: PlanInputs
    ) -> None:
        self._profile = profile
        self._shape = shape
        self._policy = replace(policy, frames_per_chunk=None)  # a forced size may shrink
        self._inputs = replace(inputs, droppable_bytes=0)  # the plan has dropped them already

    def cuts_after(self, failed: Cut) -> list[Cut]:
        """Cuts that follow `failed`, the next one first. Empty where batched or per-frame is forced."""
        if self._policy.strategy in (Strategy.BATCHED, Strategy.PER_FRAME):
            return []
        try:
            found = cuts(self._profile, self._shape, self._policy)
        except UnsupportedVae:  # the VAE supports only the forced chunk size
            return []
        return sorted((cut for cut in found if cut.order > failed.order), key=lambda cut: cut.order)

    def next_cut(
        self, failed: Cut, usable: Callable[[Cut], bool], reading: MemoryReading, held_bytes: int
    ) -> Cut | None:
        """The cut to continue with after `failed` ran out of memory, or None where no cut is `usable`.

        An exact cut is returned while one is usable. `held_bytes` are the bytes that the decode holds now. If
        no upper bound fits, the cut that needs least is returned: a bound that is too high must not end a
        decode.
        """
        later = [cut for cut in self.cuts_after(failed) if usable(cut)]
        group = [cut for cut in later if cut.exact] or later
        if not group:
            return None
        policy = replace(self._policy, exact_only=group[0].exact)
        fits = self._fastest_that_fits(policy, reading, held_bytes, group[0])
        if fits in group:
            return fits
        smallest = self.smallest() if group[0].exact else group[-1]
        return smallest if smallest in group else group[-1]

    def smallest_untried(self, tried: Collection[Cut], room_bytes: int | None = None) -> Cut | None:
        """The exact cut without tiles, not among `tried`, with the fewest expected bytes.

        None where there is none, where it needs more than `room_bytes`, or where a strategy is forced.
        """
        if self._policy.strategy != "auto":
            return None
        ladder = rungs(self._profile, self._shape, 0, self._exact, self._inputs, whole_pictures=True)
        rest = [rung for rung in ladder if rung.cut not in tried]
        least = min(rest, key=lambda rung: rung.predicted.expected_bytes, default=None)
        if least is None or (room_bytes is not None and least.predicted.expected_bytes > room_bytes):
            return None
        return least.cut

    def fastest_that_fits(self, reading: MemoryReading, held_bytes: int, at_most: Cut) -> Cut | None:
        """The fastest exact cut that fits, at or after `at_most` in the fallback order, or None.

        `held_bytes` are the bytes of the decode's own state, which the reading counts as used.
        """
        return self._fastest_that_fits(self._exact, reading, held_bytes, at_most)

    def smallest(self) -> Cut:
        """The exact cut with the fewest expected bytes.

        Upper bounds are not compared: they also depend on how many decodes of each kind are known.
        """
        return self._least().cut

    def least_bytes(self) -> int:
        """The expected bytes of `smallest`."""
        return self._least().predicted.expected_bytes

    def _least(self) -> Rung:
        ladder = rungs(self._profile, self._shape, 0, self._exact, self._inputs)
        return min(ladder, key=lambda rung: rung.predicted.expected_bytes)

    @property
    def _exact(self) -> Policy:
        return replace(self._policy, exact_only=True)

    def _fastest_that_fits(
        self, policy: Policy, reading: MemoryReading, held_bytes: int, at_most: Cut
    ) -> Cut | None:
        inputs = replace(self._inputs, held_bytes=held_bytes, at_most=at_most)
        try:
            return plan_decode(self._profile, self._shape, reading, policy, inputs).cut
        except (DoesNotFit, UnsupportedVae):
            return None
