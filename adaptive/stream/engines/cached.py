"""Decoders whose own forward carries caches from call to call: Wan and its relatives.

Such a network takes a list of caches, one for each causal convolution, and replaces an entry whenever that
layer runs. Here the list is the stream's state. Entries are written through a rollback journal, so a failed
step resumes at the stage that failed (see `stages`). Knows no family.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from adaptive.stream.engines.engine import whole_groups
from adaptive.stream.engines.stages import PendingFrames, ResumePoint, RollbackJournal, StagedRun, next_part
from adaptive.stream.intercept import forwards_replaced
from adaptive.stream.layers.causal import CausalLayers
from adaptive.stream.state import State


class CachedForward(Protocol):
    """One call of the network with its caches.

    `place` is a list with one number, the index of the next cache. The network increments it.
    """

    def __call__(self, chunk: Tensor, caches: Any, place: list[int], *, first: bool) -> Tensor:
        """Return the frames of `chunk`. Entries of `caches`, at first None, are replaced, never changed."""
        ...


class CachedEngine:
    """A `StagedEngine` (see `engine`) for a network that takes its caches as an argument.

    `stages`: modules that the network calls one after another, each on the output of the one before.
    `layers`: its causal layers. `group`: the group size of `whole_groups`.
    """

    def __init__(
        self, run: CachedForward, *, stages: Sequence[nn.Module], layers: CausalLayers, group: int = 1
    ) -> None:
        self._run = run
        self._stages = stages
        self._layers = layers
        self._group = group

    def take(self, position: int, wanted: int, total: int) -> int:
        """See `Engine.take`: the first frame goes alone."""
        return whole_groups(position, wanted, total, self._group)

    def advance(
        self,
        state: State,
        chunk: Tensor,
        *,
        limit: int,  # noqa: ARG002 - the chunk itself is the limit
        ended: bool,  # noqa: ARG002 - nothing is drained at the end
    ) -> tuple[Tensor | None, State]:
        """See `Engine.advance`."""
        return self._step(state, chunk, None, fed=chunk.shape[2])

    def resume(self, state: State, blank: Tensor, *, limit: int, parts: int) -> tuple[Tensor | None, State]:
        """See `StagedEngine.resume`."""
        part = next_part(state, limit, parts)
        return self._step(state, blank, part, fed=part.fed)

    def _step(
        self, state: State, chunk: Tensor, start: PendingFrames | None, *, fed: int
    ) -> tuple[Tensor, State]:
        journal, place = RollbackJournal(state), [0]
        first = not state if start is None else start.resume_point.first

        def resume_point() -> ResumePoint:
            return ResumePoint(place=place[0], first=first)

        def restore(point: ResumePoint) -> None:
            place[0] = point.place

        staged_run = StagedRun(journal, fed, start=start, resume_point=resume_point, restore=restore)
        rules = {stage: staged_run.stage_rule(number, None) for number, stage in enumerate(self._stages, 1)}
        with staged_run, forwards_replaced(rules), self._layers.low_memory():
            frames = self._run(chunk, _Caches(journal), place, first=first)
        return frames, state


class _Caches:
    """Looks like a list of caches to the network; its items are entries of the journal."""

    def __init__(self, journal: RollbackJournal) -> None:
        self._journal = journal

    def __getitem__(self, place: int) -> Any:
        return self._journal.get(place)

    def __setitem__(self, place: int, cache: Any) -> None:
        self._journal[place] = cache
