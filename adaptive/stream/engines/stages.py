"""Stages: a step that fails in the middle of a network goes on from there, and holds no second state.

A network is a row of stages, each a module that takes what the last one gave. Layers write their new state in
place of the old as they run; only what the present stage has replaced is kept until it ends. When it fails,
its own writes are undone, and what its input holds waits, in the state, for the next step, which may take it
some frames at a time. Owns the journal of one step and that waiting line. Knows modules and tensors `[B, C,
T, H, W]`, neither rules nor families.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor, nn

from adaptive.stream.intercept import Forward
from adaptive.stream.layers.early_release import release_early
from adaptive.stream.state import State, mapped, tensors

PENDING = "pending"  # key of a state in which frames wait between two stages: a tuple, the newest last
_MISSING = object()


class Marks(NamedTuple):
    """What an engine must know of a step to go on between two stages.

    `limit` and `ended` are a tick's; `place` counts the caches that are behind; `first`: it is the stream's
    first step.
    """

    limit: int = 1
    ended: bool = False
    place: int = 0
    first: bool = False


class Pending(NamedTuple):
    """Frames that wait behind the first `done` stages.

    `output` is what the last of those gave, tensors of the same frames in any structure; `fed` the latent
    frames that the step was made for.
    """

    done: int
    output: Any
    marks: Marks
    fed: int

    @property
    def frames(self) -> int:
        """How many frames wait."""
        return next(tensors(self.output)).shape[2]

    def cut(self, start: int, stop: int) -> Pending:
        """Frames start to stop, as a view."""
        return self._replace(output=mapped(self.output, lambda tensor: tensor[:, :, start:stop]))

    def for_limit(self, limit: int) -> Pending:
        """The same in a step made for no more than `limit` latent frames."""
        if limit >= self.fed:
            return self
        fewer = max(1, -(-self.marks.limit * limit // self.fed))
        return self._replace(marks=self.marks._replace(limit=fewer), fed=limit)


class Journal(MutableMapping[Hashable, Any]):
    """A state that is written in place, and what was there before, until `commit` or `undo`."""

    def __init__(self, cells: State) -> None:
        self.cells = cells
        self._before: dict[Hashable, Any] = {}

    def __getitem__(self, key: Hashable) -> Any:
        return self.cells[key]

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self._before.setdefault(key, self.cells.get(key, _MISSING))
        self.cells[key] = value

    def __delitem__(self, key: Hashable) -> None:
        self._before.setdefault(key, self.cells[key])
        del self.cells[key]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    def commit(self) -> None:
        """What was there before is let go of."""
        self._before.clear()

    def undo(self) -> None:
        """What was there at the last commit is there again."""
        while self._before:
            key, value = self._before.popitem()
            if value is _MISSING:
                self.cells.pop(key, None)
            else:
                self.cells[key] = value


class Passage:
    """One run through the stages, on a journal, as a context: it ends, or what failed is undone.

    `waiting` are frames that wait further behind; with `start` the run begins with those on top of them.
    `marks` and `restore` are the engine's: what must be known to go on from here, and going on with it.
    """

    def __init__(
        self,
        journal: Journal,
        fed: int,
        *,
        start: Pending | None,
        marks: Callable[[], Marks],
        restore: Callable[[Marks], None],
    ) -> None:
        self._journal = journal
        self._fed = fed
        self._marks = marks
        self._restore = restore
        self._done = 0 if start is None else start.done
        waiting = journal.get(PENDING, ())
        self._waiting: tuple[Pending, ...] = waiting if start is None else waiting[:-1]

    def around(
        self, number: int, rule: Callable[[nn.Module, Forward], Forward] | None
    ) -> Callable[[nn.Module, Forward], Forward]:
        """How the stage of this number, from 1, is run: by its rule or as it is, or passed over."""
        return functools.partial(self._bound, number, rule)

    def _bound(
        self,
        number: int,
        rule: Callable[[nn.Module, Forward], Forward] | None,
        module: nn.Module,
        own: Forward,
    ) -> Forward:
        return functools.partial(self._stage, number, own if rule is None else rule(module, own))

    def _stage(self, number: int, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if number <= self._done:
            start: Pending = self._journal[PENDING][-1]
            if number == self._done:
                self._journal.undo()  # what layers before the first stage have written
                self._restore(start.marks)
            return start.output
        output = forward(*args, **kwargs)
        self._journal[PENDING] = (*self._waiting, Pending(number, output, self._marks(), self._fed))
        self._journal.commit()
        if number > 1 and type(args[0]) is Tensor and args[0] is not output:
            # The network around holds it until its block ends, and a view what it is a view of.
            for spent in (args[0]._base, args[0]):
                if spent is not None:
                    release_early(spent)
        return output

    def __enter__(self) -> Passage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A failure leaves what the stages done have left; else nothing of this run waits any more."""
        if kind is not None:
            self._journal.undo()
            return
        self._journal.commit()
        if self._waiting:
            self._journal.cells[PENDING] = self._waiting
        else:
            self._journal.cells.pop(PENDING, None)


def next_part(state: State, limit: int, parts: int) -> Pending:
    """What goes on next: of the newest frames that wait, as many as `limit` latent frames stand for, or one
    of `parts` of that.

    The rest stays behind them.
    """
    *waiting, newest = state[PENDING]
    frames = newest.frames
    count = max(1, -(-frames * limit // (newest.fed * parts)))
    part: Pending = newest.for_limit(limit)
    if count < frames:
        waiting.append(newest.cut(count, frames))
        part = part.cut(0, count)._replace(marks=part.marks._replace(ended=False))
    state[PENDING] = (*waiting, part)
    return part


def stages_of(decoder: Any) -> list[nn.Module]:
    """Stages of a decoder of the usual shape: the middle, then each layer of the blocks behind it.

    A block with a shortcut around all its layers is one stage.
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
