"""Networks whose own forward carries caches from call to call: those of Wan and its relatives.

Owns one step of such a network: its caches are the stream's, an entry each, and what a step has replaced is
kept until the stage it happened in is done (see `stages`). Knows no family.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from adaptive.stream.engines.engine import whole_groups
from adaptive.stream.engines.stages import Journal, Marks, Passage, Pending, next_part
from adaptive.stream.intercept import forwards_replaced
from adaptive.stream.layers.causal import CausalLayers
from adaptive.stream.state import State


class Run(Protocol):
    """A call of the network with its caches; `place` is a list of one number, the cache that is next."""

    def __call__(self, chunk: Tensor, caches: Any, place: list[int], *, first: bool) -> Tensor:
        """Frames of `chunk`; entries of `caches` (None at first) are replaced, never changed."""
        ...


class CachedEngine:
    """Streams through a network with caches of its own, see `adaptive.stream.engines.engine.StagedEngine`.

    `stages`: modules that the network calls one after another, each on what the last one gave, `group` as in
    `whole_groups`, `layers` the network's.
    """

    def __init__(
        self, run: Run, *, stages: Sequence[nn.Module], layers: CausalLayers, group: int = 1
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
        ended: bool,  # noqa: ARG002 - the end needs nothing
    ) -> tuple[Tensor | None, State]:
        """See `Engine.advance`."""
        return self._step(state, chunk, None, fed=chunk.shape[2])

    def resume(self, state: State, blank: Tensor, *, limit: int, parts: int) -> tuple[Tensor | None, State]:
        """See `StagedEngine.resume`."""
        part = next_part(state, limit, parts)
        return self._step(state, blank, part, fed=part.fed)

    def _step(self, state: State, chunk: Tensor, start: Pending | None, *, fed: int) -> tuple[Tensor, State]:
        journal, place = Journal(state), [0]
        first = not state if start is None else start.marks.first

        def restore(marks: Marks) -> None:
            place[0] = marks.place

        passage = Passage(
            journal, fed, start=start, marks=lambda: Marks(place=place[0], first=first), restore=restore
        )
        rules = {stage: passage.around(number, None) for number, stage in enumerate(self._stages, 1)}
        with passage, forwards_replaced(rules), self._layers.lean():
            frames = self._run(chunk, _Caches(journal), place, first=first)
        return frames, state


class _Caches:
    """A list of caches, to the network; entries of the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __getitem__(self, place: int) -> Any:
        return self._journal.get(place)

    def __setitem__(self, place: int, cache: Any) -> None:
        self._journal[place] = cache
