"""Engines: turn the next latent frames into the next finished video frames of one kind of VAE.

All state belongs to the caller, so several streams can take turns on one VAE. Most engines are pure functions
from state and chunk to frames and next state: after a failure the caller still has the old state. A
`StagedEngine` writes the state in place and resumes a failed step at the stage that failed (see `stages`).

`RuledEngine` calls the unmodified network with a streaming rule in place of each temporal layer's `forward`
(see `chunk_pass`). `CallEngine` is the base of engines that need no rules. Knows neither device placement nor
positions in the video (see `decode_stream`) nor any family (see `adaptive.families`).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from adaptive.errors import UnsupportedVae
from adaptive.stream.engines.chunk_pass import ChunkPass
from adaptive.stream.engines.noise import same_noise
from adaptive.stream.engines.stages import PendingFrames, RollbackJournal, StagedRun, next_part
from adaptive.stream.intercept import Interception, check_forwards, place_of, running
from adaptive.stream.layer_checks import check_classes, may_keep_tensors
from adaptive.stream.layers.early_release import EarlyRelease
from adaptive.stream.state import State as State

# A rule is called as rule(chunk_pass, module, forward, *args, **kwargs) in place of forward(*args, **kwargs).
Rule = Callable[..., Any]
# Keys of a stream's state:
_FRAMES_TO_DROP = "frames_to_drop"  # frames at the start of the stream that are still to be dropped
UNFINISHED_CHUNK = (
    "unfinished_chunk"  # a chunk that has passed the earlier layers only (see `StripwiseEngine`)
)


class Engine(Protocol):
    """Runs one decode or encode through its VAE, chunk by chunk."""

    def take(self, position: int, wanted: int, total: int) -> int:
        """Return the number of input frames of the next chunk.

        It is `wanted`, unless the VAE's arithmetic demands another. `position` of `total` frames have been
        fed.
        """
        ...

    def advance(self, state: State, chunk: Tensor, *, limit: int, ended: bool) -> tuple[Tensor | None, State]:
        """Feed `chunk` (`[B, C, n, h, w]`, n may be 0); return the finished frames and the next state.

        The frames are `[B, C, f, H, W]`, or None if there are none. `limit` bounds what each layer emits: no
        more frames than that many input frames correspond to. `ended` says that the chunk contains the last
        input frame or comes after it. Tensors in `state` are never changed. The dictionary `state` is changed
        by a staged engine only. If its call fails, `state` is as before, or holds frames that wait between
        two stages (`PENDING`).
        """
        ...

    def open(self) -> None:
        """Take hold of the network's layers, for one stream. Until then the network is as it was.

        Raises `UnsupportedVae` if the `forward` of one was replaced since the engine was made.
        """
        ...

    def close(self) -> None:
        """Let go of the network's layers; the engine is not used again. Calling it again does nothing."""
        ...


@runtime_checkable
class StagedEngine(Engine, Protocol):
    """An engine that resumes a failed step at the stage that failed."""

    def resume(self, state: State, blank: Tensor, *, limit: int, parts: int) -> tuple[Tensor | None, State]:
        """Continue with frames that wait in `state` (`PENDING`) after a failed step.

        Takes as many of them as `limit` input frames correspond to, divided by `parts`. `blank` is a latent
        frame of any content: the network is called with it, and its stages up to the failed one are skipped.
        Returns, or leaves after a failure, what `advance` does.
        """
        ...


def whole_groups(position: int, wanted: int, total: int, size: int) -> int:
    """Return the next chunk's frames: the first frame goes alone, later ones in whole groups of `size`."""
    if position == 0:
        return 1
    return min(max(1, wanted // size) * size, total - position)


@runtime_checkable
class StripwiseEngine(Engine, Protocol):
    """An engine that can also run its later layers on horizontal strips of the chunk's frames."""

    def begin(self, state: State, chunk: Tensor, *, limit: int, ended: bool) -> State:
        """Feed a chunk through the earlier layers only; return a state with `UNFINISHED_CHUNK`.

        Arguments are those of `advance`.
        """
        ...

    def finish(self, state: State, rows: int) -> Iterator[tuple[Tensor | None, State]]:
        """Run the later layers on the unfinished chunk, in strips of at most `rows` latent rows.

        Yields after each completed part a state to resume from. The last item has the frames, and a state
        without `UNFINISHED_CHUNK`. The engine may write to `state`.
        """
        ...


class CallEngine(ABC):
    """Base of engines whose every call returns all frames of its chunk, so that nothing is left to drain."""

    def take(self, position: int, wanted: int, total: int) -> int:
        """See `Engine.take`: any chunk size is right."""
        return min(wanted, total - position)

    def advance(
        self,
        state: State,
        chunk: Tensor,
        *,
        limit: int,  # noqa: ARG002 - the chunk itself is the limit
        ended: bool,  # noqa: ARG002 - nothing is drained at the end
    ) -> tuple[Tensor | None, State]:
        """See `Engine.advance`."""
        return self.call(state, chunk)

    def open(self) -> None:  # noqa: B027 - the usual case, not a missing one
        """See `Engine.open`: nothing is installed."""

    def close(self) -> None:  # noqa: B027 - same
        """See `Engine.close`: nothing was installed."""

    @abstractmethod
    def call(self, state: State, chunk: Tensor) -> tuple[Tensor, State]:
        """Return all frames of `chunk` (one or more) and the next state, without changing `state`."""


class RuledEngine:
    """Streams through an unmodified `module` by running streaming rules in place of its temporal layers.

    - `rules` maps class names to rules. The class of every submodule must be in `rules` or in `pointwise`
      (layers that treat each frame alone), else `UnsupportedVae` is raised: an unknown layer might mix
      frames.
    - `sink` is the last temporal layer.
    - `kwargs` are keyword arguments of the module's `forward`.
    - `seeded`: the forward draws random numbers, which must be the same for every chunk.
    - `begin` is applied to each chunk before `module`, `finish` to the module's output.
    - `drop` is the number of frames at the start of the output that do not belong to the video.
    - `group`: chunks are cut by `whole_groups` with this group size.
    - `stages` are modules that `module` calls one after another, each on the output of the one before. With
      them, a failed step resumes after the last completed stage.
    - `overridden` are more modules that `_run` may be asked to override.

    Raises `UnsupportedVae`, naming the layer, for what it could not run as the module itself does.
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
        overridden: Iterable[nn.Module] = (),
    ) -> None:
        check_classes(module, pointwise | rules.keys())
        check_forwards(module, (module,))
        for child in module.modules():
            if child._compiled_call_impl is not None:
                wanted = f"streaming through {place_of(module, child)}, which is compiled"
                raise UnsupportedVae(type(module).__name__, wanted)
        self._module = module
        self._layers = tuple(module.modules())
        self._kwargs = dict(kwargs)
        self._seeded = seeded
        self._begin = begin
        self._finish = finish
        self._drop = drop
        self._group = group
        self._sink = sink
        # A resumed forward would draw other noise than a whole one.
        self._stages = () if seeded else tuple(stages)
        self._hooked = any("_diffusers_hook" in child.__dict__ for child in self._layers)
        named = ((child, type(child).__name__) for child in self._layers)
        self._ruled: dict[nn.Module, Rule] = {child: rules[kind] for child, kind in named if kind in rules}
        self._changed = tuple(dict.fromkeys((*self._ruled, *self._stages, *overridden)))
        check_forwards(module, self._changed)
        self._interception: Interception | None = None

    def take(self, position: int, wanted: int, total: int) -> int:
        """See `Engine.take`: any chunk size is right, unless frames go in groups."""
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

    def open(self) -> None:
        """See `Engine.open`."""
        self._interception = Interception(self._module, self._changed)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._interception is not None:
            self._interception.close()

    def _step(
        self, state: State, chunk: Tensor, start: PendingFrames | None, *, fed: int, limit: int, ended: bool
    ) -> tuple[Tensor | None, State]:
        journal = RollbackJournal(state if self._stages else dict(state))
        chunk_pass = self._chunk_pass(journal, limit=limit, ended=ended)
        with StagedRun(
            journal,
            fed,
            start=start,
            resume_point=chunk_pass.resume_point,
            restore=chunk_pass.restore,
            release=chunk_pass.early_release.allowed,
        ) as staged_run:
            if self._begin is not None:
                chunk = self._begin(chunk)
            output = self._run(chunk_pass, chunk, {}, staged_run)
            if output is not None:
                frames = output if self._finish is None else self._finish(output)
                output = self._drop_first_frames(journal, frames)
        return output, journal.state

    def _drop_first_frames(self, journal: RollbackJournal, frames: Tensor) -> Tensor:
        left: int = journal.get(_FRAMES_TO_DROP, self._drop)
        if not left:
            return frames
        journal[_FRAMES_TO_DROP] = max(0, left - frames.shape[2])
        return frames[:, :, left:].clone()

    def _chunk_pass(
        self, layer_states: MutableMapping[Hashable, Any], *, limit: int, ended: bool
    ) -> ChunkPass:
        return ChunkPass(
            layer_states=layer_states,
            limit=limit,
            ended=ended,
            sink=self._sink,
            may_skip_idle_blocks=not (self._seeded or self._hooked),
            call_idle_convolutions=self._hooked,
            early_release=EarlyRelease(allowed=not may_keep_tensors(self._layers)),
        )

    def _run(
        self,
        chunk_pass: ChunkPass,
        chunk: Tensor,
        overrides: Mapping[nn.Module, Callable[..., Any]],
        staged_run: StagedRun | None = None,
    ) -> Any:
        """Return the output of `module`, or None if this pass completes no frame.

        A module in `overrides` runs that function, called as function(module, forward, ...), and not its
        rule.
        """
        rules: dict[nn.Module, Callable[..., Any]] = {
            module: functools.partial(rule, chunk_pass) for module, rule in self._ruled.items()
        }
        if staged_run is not None:
            rules |= {
                stage: staged_run.stage_rule(number, rules.get(stage))
                for number, stage in enumerate(self._stages, 1)
            }
        rules |= overrides
        noise = same_noise(chunk_pass.layer_states, chunk.device) if self._seeded else nullcontext()
        with running(rules), noise:
            output = self._module(chunk, **self._kwargs)
        return None if chunk_pass.no_output else output
