"""Staged steps: a step that fails inside a network resumes at the stage that failed, without a second state.

A network is a sequence of stages: modules of which each takes the output of the one before. Keeping the whole
old state until a step succeeds would double the memory of the state. Instead, layers replace their state in
place as they run, and a rollback journal keeps the values that the current stage has replaced. When the stage
completes, the journal is cleared and the stage's output is stored in the state as *pending frames*.

If a stage fails, for example with an out-of-memory, the journal restores its old values. Everything that
earlier stages did remains valid, and the pending frames are the failed stage's input. The next step calls the
network again with a blank input: stages that are done are skipped, the failed one receives the pending
frames. It may take only part of them, to need less memory; the rest stays pending and is taken by the steps
after it.

Owns the journal of one step and the pending frames. Knows modules and tensors `[B, C, T, H, W]`, neither
rules nor families.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor, nn

from adaptive.stream.intercept import Forward
from adaptive.stream.layers.early_release import release_early
from adaptive.stream.state import State, map_tensors, tensors

PENDING = "pending"  # key of a state: a tuple of `PendingFrames`, the most advanced last
_MISSING = object()


class ResumePoint(NamedTuple):
    """What an engine must know to resume a step between two stages.

    `limit` and `ended` are those of a `ChunkPass`. `place` is the number of caches that the completed stages
    have used. `first` says that this is the stream's first step.
    """

    limit: int = 1
    ended: bool = False
    place: int = 0
    first: bool = False


class PendingFrames(NamedTuple):
    """Frames that have completed the first `done` stages and wait for the next one.

    `output` is the output of stage number `done`: tensors with the same number of frames, nested in any way.
    `fed` is the number of latent frames of the step that made it.
    """

    done: int
    output: Any
    resume_point: ResumePoint
    fed: int

    @property
    def frames(self) -> int:
        """Number of frames that wait."""
        return next(tensors(self.output)).shape[2]

    def cut(self, start: int, stop: int) -> PendingFrames:
        """Return frames `start` to `stop`, as views."""
        return self._replace(output=map_tensors(self.output, lambda tensor: tensor[:, :, start:stop]))

    def for_limit(self, limit: int) -> PendingFrames:
        """Return the same frames for a step of at most `limit` latent frames.

        Its layers may emit fewer frames in proportion.
        """
        if limit >= self.fed:
            return self
        fewer = max(1, -(-self.resume_point.limit * limit // self.fed))
        return self._replace(resume_point=self.resume_point._replace(limit=fewer), fed=limit)


class RollbackJournal(MutableMapping[Hashable, Any]):
    """A state that is written in place, with the replaced values kept until `commit` or `rollback`."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._before: dict[Hashable, Any] = {}

    def __getitem__(self, key: Hashable) -> Any:
        return self.state[key]

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self._before.setdefault(key, self.state.get(key, _MISSING))
        self.state[key] = value

    def __delitem__(self, key: Hashable) -> None:
        self._before.setdefault(key, self.state[key])
        del self.state[key]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

    def commit(self) -> None:
        """Discard the replaced values."""
        self._before.clear()

    def rollback(self) -> None:
        """Restore every value to what it was at the last commit."""
        while self._before:
            key, value = self._before.popitem()
            if value is _MISSING:
                self.state.pop(key, None)
            else:
                self.state[key] = value


class StagedRun:
    """One run of a network through its stages, on a journal. Use it as a context: a failure rolls back.

    `fed` is the number of latent frames that the step was made for. With `start`, the run resumes with those
    pending frames, the last of the state's. `resume_point` returns what the engine must know to resume after
    the stage that just completed; `restore` makes the engine resume there. `release`: a stage's input is
    freed when the stage completes, because nobody but the network's own code has a reference to it.
    """

    def __init__(
        self,
        journal: RollbackJournal,
        fed: int,
        *,
        start: PendingFrames | None,
        resume_point: Callable[[], ResumePoint],
        restore: Callable[[ResumePoint], None],
        release: bool = True,
    ) -> None:
        self._journal = journal
        self._release = release
        self._fed = fed
        self._resume_point = resume_point
        self._restore = restore
        self._done = 0 if start is None else start.done
        waiting = journal.get(PENDING, ())
        self._waiting: tuple[PendingFrames, ...] = waiting if start is None else waiting[:-1]

    def stage_rule(self, number: int, rule: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Return the rule that runs stage `number` (from 1), or skips it if this run resumes after it.

        `rule` is the stage's own streaming rule; without one, its `forward` runs.
        """
        return functools.partial(self._stage, number, rule)

    def _stage(
        self,
        number: int,
        rule: Callable[..., Any] | None,
        module: nn.Module,
        forward: Forward,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if number <= self._done:
            start: PendingFrames = self._journal[PENDING][-1]
            if number == self._done:
                self._journal.rollback()  # undo what layers before the first stage wrote for the blank input
                self._restore(start.resume_point)
            return start.output
        output = forward(*args, **kwargs) if rule is None else rule(module, forward, *args, **kwargs)
        pending = PendingFrames(number, output, self._resume_point(), self._fed)
        self._journal[PENDING] = (*self._waiting, pending)
        self._journal.commit()
        if self._release and number > 1 and type(args[0]) is Tensor and args[0] is not output:
            # The network's code keeps a reference to the input until its block returns, and a view keeps the
            # tensor that it is a view of.
            for spent in (args[0]._base, args[0]):
                if spent is not None:
                    release_early(spent)
        return output

    def __enter__(self) -> StagedRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After a failure, keep what the completed stages wrote; else remove this run's pending frames."""
        if kind is not None:
            self._journal.rollback()
            return
        self._journal.commit()
        if self._waiting:
            self._journal.state[PENDING] = self._waiting
        else:
            self._journal.state.pop(PENDING, None)


def next_part(state: State, limit: int, parts: int) -> PendingFrames:
    """Return the pending frames to resume with, and leave the rest pending before them.

    They are the first of the most advanced ones: as many as `limit` latent frames correspond to, divided by
    `parts`.
    """
    *waiting, latest = state[PENDING]
    frames = latest.frames
    count = max(1, -(-frames * limit // (latest.fed * parts)))
    part: PendingFrames = latest.for_limit(limit)
    if count < frames:
        waiting.append(latest.cut(count, frames))
        part = part.cut(0, count)._replace(resume_point=part.resume_point._replace(ended=False))
    state[PENDING] = (*waiting, part)
    return part


def stages_of(decoder: Any) -> list[nn.Module]:
    """Return the stages of a decoder: the middle block, then each layer of the up blocks.

    The decoder has the form that is usual in diffusers. A block with a shortcut past all its layers is one
    stage.
    """
    stages: list[nn.Module] = [decoder.mid_block]
    for block in decoder.up_blocks:
        if getattr(block, "avg_shortcut", None) is not None:
            stages.append(block)
            continue
        rows = [getattr(block, name, None) for name in ("resnets", "convs", "attentions", "temp_attentions")]
        layers = [layer for column in zip(*(row for row in rows if row), strict=True) for layer in column]
        layers += [*(getattr(block, "upsamplers", None) or ()), getattr(block, "upsampler", None)]
        stages += [layer for layer in layers if layer is not None]
    return stages
