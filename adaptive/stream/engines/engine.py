"""Engines: how one kind of VAE turns the next latent frames into the next finished video frames.

All state is the caller's, so streams interleave on one VAE. Most engines are pure step functions: a failed
step needs no undoing. A `StagedEngine` writes the state in place, and goes on where a step failed.
`RuledEngine` sends a chunk through the unmodified decoder while streaming rules stand in for its temporal
layers. Knows no device placement, no accounting of positions (see `decode`) and no family (see
`adaptive.families`).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from adaptive.errors import UnsupportedVae
from adaptive.stream.engines.chunk_pass import Tick
from adaptive.stream.engines.stages import Journal, Passage, Pending, next_part
from adaptive.stream.intercept import Forward, forwards_replaced, replacing_forward
from adaptive.stream.state import State as State

Rule = Callable[
    ..., Any
]  # rule(tick, module, forward, *args, **kwargs), in place of forward(*args, **kwargs)
_RNG = "rng"
_LEAD = "lead"  # frames at the start that are still to be dropped
PICTURE = "picture"  # key of a state in which a picture is begun


class Engine(Protocol):
    """One decode's (or encode's) way through its VAE."""

    def take(self, position: int, wanted: int, total: int) -> int:
        """Input frames of the next chunk: `wanted`, unless the VAE's arithmetic only allows other cuts."""
        ...

    def advance(self, state: State, chunk: Tensor, *, limit: int, ended: bool) -> tuple[Tensor | None, State]:
        """Feed `chunk` (`[B, C, n, h, w]`, n may be 0) and return finished frames, if any, and the next
        state.

        No layer emits more frames than `limit` input frames stand for. `ended`: the chunk holds the last
        frame, or comes after it. No tensor in `state` is changed, nor is `state` unless the engine is staged:
        then a call that fails leaves it as it was, or with frames that wait (`PENDING`).
        """
        ...


@runtime_checkable
class StagedEngine(Engine, Protocol):
    """An engine whose failed steps go on where they failed."""

    def resume(self, state: State, blank: Tensor, *, limit: int, parts: int) -> tuple[Tensor | None, State]:
        """Take frames that wait in `state` (`PENDING`) on: as many as `limit` input frames stand for, or one
        of `parts` of that. Gives, and leaves after a failure, what `advance` does.

        `blank` are latent frames to call the network with, of any content.
        """
        ...


def whole_groups(position: int, wanted: int, total: int, size: int) -> int:
    """Frames of the next chunk where the first frame goes alone and groups of `size` follow, never cut."""
    if position == 0:
        return 1
    return min(max(1, wanted // size) * size, total - position)


@runtime_checkable
class StripwiseEngine(Engine, Protocol):
    """An engine that can also take a chunk's pictures through its later layers in strips."""

    def begin(self, state: State, chunk: Tensor, *, limit: int, ended: bool) -> State:
        """Feed a chunk, like `advance`, but through the earlier layers only. Gives a state with `PICTURE`."""
        ...

    def finish(self, state: State, rows: int) -> Iterator[tuple[Tensor | None, State]]:
        """The later layers for what was begun, in strips of at most `rows` latent rows.

        Yields after each part that is done for good; the last brings the frames, and a state without
        `PICTURE`. `state` is the engine's own: it may be written to.
        """
        ...


class CallEngine(ABC):
    """Base of engines whose every call finishes all the frames it is given: nothing waits, nothing drains."""

    def take(self, position: int, wanted: int, total: int) -> int:
        """See `Engine.take`: any cut is right."""
        return min(wanted, total - position)

    def advance(
        self,
        state: State,
        chunk: Tensor,
        *,
        limit: int,  # noqa: ARG002 - the chunk itself is the limit
        ended: bool,  # noqa: ARG002 - the end needs nothing
    ) -> tuple[Tensor | None, State]:
        """See `Engine.advance`."""
        return self.call(state, chunk)

    @abstractmethod
    def call(self, state: State, chunk: Tensor) -> tuple[Tensor, State]:
        """All frames of `chunk`, which holds at least one, and the next state. Changes nothing in `state`."""


class RuledEngine:
    """Streams through `module`, whose temporal layers are replaced by the rule of their class for each step.

    `rules` is keyed by class name; every class below `module` must be in `rules` or in `pointwise` (layers
    that treat frames one by one), else `UnsupportedVae` is raised: what is not known is not streamed. `sink`
    is the last temporal layer. `seeded` says that the forward draws random numbers, which every chunk must
    share. `begin` makes what `module` takes of a chunk, `finish` makes frames of what it gives, where they
    are not that already. `drop`: frames at the start of the stream that are none of the video's. `group`:
    chunks are cut by `whole_groups` of this size. `stages`: modules that `module` calls one after another,
    each on what the last one gave; with them a step that fails goes on behind the last that was done.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        rules: Mapping[str, Rule],
        pointwise: frozenset[str],
        sink: nn.Module,
        kwargs: Mapping[str, Any],
        seeded: bool = False,
        begin: Callable[[Tensor], Tensor] | None = None,
        finish: Callable[[Any], Tensor] | None = None,
        drop: int = 0,
        group: int | None = None,
        stages: Sequence[nn.Module] = (),
    ) -> None:
        self._module = module
        self._kwargs = dict(kwargs)
        self._seeded = seeded
        self._begin = begin
        self._finish = finish
        self._drop = drop
        self._group = group
        self._sink = sink
        self._stages = () if seeded else tuple(stages)  # noise is drawn by one forward after another
        self._hooked = any("_diffusers_hook" in child.__dict__ for child in module.modules())
        self._ruled: dict[nn.Module, Rule] = {}
        for name, child in module.named_modules():
            kind = type(child).__name__
            if kind in rules:
                self._ruled[child] = rules[kind]
            if (kind not in rules and kind not in pointwise) or child._compiled_call_impl is not None:
                raise UnsupportedVae(type(module).__name__, f"streaming through {name or 'itself'} ({kind})")

    def take(self, position: int, wanted: int, total: int) -> int:
        """See `Engine.take`: any cut is right, unless frames go in groups."""
        if self._group is not None:
            return whole_groups(position, wanted, total, self._group)
        return min(wanted, total - position)

    def advance(self, state: State, chunk: Tensor, *, limit: int, ended: bool) -> tuple[Tensor | None, State]:
        """See `Engine.advance`."""
        return self._step(state, chunk, None, fed=limit, limit=limit, ended=ended)

    def resume(self, state: State, blank: Tensor, *, limit: int, parts: int) -> tuple[Tensor | None, State]:
        """See `StagedEngine.resume`."""
        part = next_part(state, limit, parts)
        return self._step(state, blank, part, fed=part.fed, limit=limit, ended=False)

    def _step(
        self, state: State, chunk: Tensor, start: Pending | None, *, fed: int, limit: int, ended: bool
    ) -> tuple[Tensor | None, State]:
        cells = Journal(state if self._stages else dict(state))
        tick = self._tick(cells, limit=limit, ended=ended)
        with Passage(cells, fed, start=start, marks=tick.marks, restore=tick.restore) as passage:
            if self._begin is not None:
                chunk = self._begin(chunk)
            output = self._run(tick, chunk, {}, passage)
            if output is not None:
                output = self._without_lead(cells, output if self._finish is None else self._finish(output))
        return output, cells.cells

    def _without_lead(self, cells: Journal, frames: Tensor) -> Tensor:
        left: int = cells.get(_LEAD, self._drop)
        if not left:
            return frames
        cells[_LEAD] = max(0, left - frames.shape[2])
        return frames[:, :, left:].clone()

    def _tick(self, cells: MutableMapping[Hashable, Any], *, limit: int, ended: bool) -> Tick:
        return Tick(
            cells=cells,
            limit=limit,
            ended=ended,
            sink=self._sink,
            may_skip=not (self._seeded or self._hooked),
            touch=self._hooked,
        )

    def _run(
        self,
        tick: Tick,
        chunk: Tensor,
        instead: Mapping[nn.Module, Forward],
        passage: Passage | None = None,
    ) -> Any:
        """What `module` gives for this tick, or None; modules in `instead` run that and not their rule."""
        rules: dict[nn.Module, Callable[[nn.Module, Forward], Forward]] = {
            module: functools.partial(_bound, tick, rule) for module, rule in self._ruled.items()
        }
        if passage is not None:
            rules |= {
                stage: passage.around(number, rules.get(stage))
                for number, stage in enumerate(self._stages, 1)
            }
        rules |= {module: replacing_forward(forward) for module, forward in instead.items()}
        with forwards_replaced(rules), self._same_noise(tick, chunk.device):
            output = self._module(chunk, **self._kwargs)
        return None if tick.no_output else output

    @contextmanager
    def _same_noise(self, tick: Tick, device: torch.device) -> Iterator[None]:
        """Every chunk sees the random numbers that the first one saw; the generator moves on once, as if
        batched."""
        if not self._seeded or device.type == "meta":
            yield
            return
        before = _rng_state(device)
        first = tick.cells.setdefault(_RNG, before)
        moves_on = first is before
        try:
            if not moves_on:
                _set_rng_state(device, first)
            yield
        except BaseException:
            moves_on = False
            raise
        finally:
            if not moves_on:
                _set_rng_state(device, before)


def _bound(tick: Tick, rule: Rule, module: nn.Module, forward: Forward) -> Forward:
    return functools.partial(rule, tick, module, forward)


def _rng_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_rng_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state.cpu(), device)
    else:
        torch.set_rng_state(state.cpu())
