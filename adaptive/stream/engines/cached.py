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
from adaptive.stream.intercept import Interception, check_forwards, running
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
    `layers`: its causal layers. `group`: the group size of `whole_groups`. Raises `UnsupportedVae` if the
    `forward` of the network, a stage or a causal layer was replaced.
    """

    def __init__(
        self,
        network: nn.Module,
        run: CachedForward,
        *,
        stages: Sequence[nn.Module],
        layers: CausalLayers,
        group: int = 1,
    ) -> None:
        check_forwards(network, (network,))
        self._run = run
        # Rules do not run inside compiled layers, so none of the stages in them could be skipped.
        compiled = any(layer._compiled_call_impl is not None for layer in network.modules())
        self._stages = () if compiled else tuple(stages)
        check_forwards(network, self._stages)
        self._network = network
        self._interception: Interception | None = None
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

    def open(self) -> None:
        """See `Engine.open`."""
        self._interception = Interception(self._network, self._stages)
        self._layers.open()

    def close(self) -> None:
        """See `Engine.close`."""
        if self._interception is not None:
            self._interception.close()
        self._layers.close()

    def _step(
        self, state: State, chunk: Tensor, start: PendingFrames | None, *, fed: int
    ) -> tuple[Tensor, State]:
        journal, place = RollbackJournal(state), [0]
        first = not state if start is None else start.resume_point.first

        def resume_point() -> ResumePoint:
            return ResumePoint(place=place[0], first=first)

        def restore(point: ResumePoint) -> None:
            place[0] = point.place

        with self._layers.early_release() as release:
            staged_run = StagedRun(
                journal, fed, start=start, resume_point=resume_point, restore=restore, release=release
            )
            rules = {stage: staged_run.stage_rule(number) for number, stage in enumerate(self._stages, 1)}
            with staged_run, running({**self._layers.rules, **rules}):
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
