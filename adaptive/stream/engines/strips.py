"""Strips: the later layers of a decoder see one chunk's pictures some rows at a time, with the same result.

Most memory of a decode is in the layers of full resolution. Their reach over space is a few rows, so they can
be run on a strip of the picture with as many rows more on either side, whose own results are thrown away.
Norms must not mix positions. The temporal state stays that of whole pictures: a strip reads its rows of it
and writes them back in place, so the next chunk may be cut otherwise, or not at all, and no second copy of
the state is needed. Of the rows it overwrites, those within the next strip's reach are kept aside.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptive.stream.engines.engine import PICTURE, RuledEngine, State
from adaptive.stream.intercept import Forward
from adaptive.stream.state import mapped, tensors


class Tail(NamedTuple):
    """The later layers of a decoder: from `entry`, whose input they share with nothing, to the end.

    `before` are the modules that the decoder's own forward calls before `entry`, each on what the last one
    gave; `after` those that it calls behind it. A row of the result depends on `halo` rows of `entry`'s input
    to either side.
    """

    before: tuple[nn.Module, ...]
    entry: nn.Module
    after: tuple[nn.Module, ...]
    halo: int

    def layers(self) -> frozenset[nn.Module]:
        """Every module from `entry` on."""
        return frozenset(layer for part in (self.entry, *self.after) for layer in part.modules())


class Picture(NamedTuple):
    """One chunk on its way through the tail: what has been made of it, and what the rest needs.

    `entry` `[B, C, n, h, w]` is the tail's input, of which the rows before `done` are through. `before` are
    the tail's cells as they were, but that rows done may be overwritten; `after` those of the next chunk, as
    far as they are made; `kept` the rows of `before` above `done` that were there. `limit` and `ended` are
    the tick's.
    """

    entry: Tensor
    rows_per_latent: int
    done: int
    limit: int
    ended: bool
    before: dict[Hashable, Any]
    after: dict[Hashable, Any]
    kept: dict[Hashable, Any]
    frames: Tensor | None


class StripEngine(RuledEngine):
    """A ruled engine whose `tail` may see pictures in strips. The forward must draw no random numbers."""

    def __init__(self, module: nn.Module, *, tail: Tail, **options: Any) -> None:
        super().__init__(module, **options)
        self._tail = tail
        self._tail_layers = tail.layers()

    def begin(self, state: State, chunk: Tensor, *, limit: int, ended: bool) -> State:
        """See `StripwiseEngine.begin`: the earlier layers; the later ones' cells are set aside."""
        cells = dict(state)
        tick = self._tick(cells, limit=limit, ended=ended)
        caught: list[Tensor] = []

        def catch(_module: nn.Module, _forward: Forward, frames: Tensor, *_: Any, **__: Any) -> Tensor:
            caught.append(frames)
            channels = self._sink.in_channels
            assert isinstance(channels, int)
            return frames.new_empty(frames.shape[0], channels, 0, *frames.shape[3:])

        def nothing(module: Any, _forward: Forward, frames: Tensor, *_: Any, **__: Any) -> Tensor:
            tick.no_output = True
            return frames.new_empty(frames.shape[0], module.out_channels, 1, 1, 1)

        self._run(tick, chunk, {self._tail.entry: catch, self._sink: nothing})
        (entry,) = caught
        before: dict[Hashable, Any] = {
            layer: cells.pop(layer) for layer in list(cells) if layer in self._tail_layers
        }
        scale = entry.shape[3] // chunk.shape[3]
        cells[PICTURE] = Picture(entry, scale, 0, tick.limit, tick.ended, before, {}, {}, None)
        return cells

    def finish(self, state: State, rows: int) -> Iterator[tuple[Tensor | None, State]]:
        """See `StripwiseEngine.finish`."""
        while PICTURE in state:
            frames, state = self._strip(state, rows)
            yield frames, state
            del frames

    def _strip(self, state: State, rows: int) -> tuple[Tensor | None, State]:
        picture: Picture = state[PICTURE]
        height = picture.entry.shape[3]
        strip = _Strip.of(picture, rows, self._tail.halo)
        cells = {layer: strip.of_cells(layer, picture) for layer in picture.before}
        tick = self._tick(dict(cells), limit=picture.limit, ended=picture.ended)

        def enter(_module: nn.Module, forward: Forward, frames: Tensor, *args: Any, **options: Any) -> Any:
            return forward(strip.rows_of(frames), *args, **options)

        def pass_on(_module: nn.Module, _forward: Forward, frames: Tensor, *_: Any, **__: Any) -> Tensor:
            return frames

        instead: dict[nn.Module, Forward] = dict.fromkeys(self._tail.before, pass_on)
        output = self._run(tick, picture.entry, {**instead, self._tail.entry: enter})
        picture = strip.committed(picture, cells, tick.cells, output)
        rest = {key: value for key, value in state.items() if key != PICTURE}
        if picture.done < height:
            return None, {**rest, PICTURE: picture}
        return picture.frames, {**rest, **picture.after}


class _Strip(NamedTuple):
    """Rows `start` to `stop` of `entry`'s input; `first` to `last` with those they depend on; of `height`."""

    first: int
    start: int
    stop: int
    last: int
    height: int
    halo: int

    @classmethod
    def of(cls, picture: Picture, rows: int, halo: int) -> _Strip:
        height, start = picture.entry.shape[3], picture.done
        stop = min(height, start + rows * picture.rows_per_latent)
        return cls(max(0, start - halo), start, stop, min(height, stop + halo), height, halo)

    def rows_of(self, frames: Tensor) -> Tensor:
        return frames[..., self.first : self.last, :]

    def of_cells(self, layer: Hashable, picture: Picture) -> Any:
        """The layer's cell, cut to this strip: rows that were overwritten come from those kept."""
        above = tensors(picture.kept.get(layer))

        def cut(tensor: Tensor) -> Tensor:
            scale = tensor.shape[3] // self.height
            kept, below = next(above, None), tensor[..., self.start * scale : self.last * scale, :]
            return below if kept is None else torch.cat([kept, below], 3)

        return mapped(picture.before[layer], cut)

    def committed(
        self,
        picture: Picture,
        old: Mapping[Hashable, Any],
        new: Mapping[Hashable, Any],
        output: Tensor | None,
    ) -> Picture:
        """The picture with this strip done. All that needs memory comes before anything is overwritten."""
        kept = (
            {}
            if self.stop == self.height
            else {layer: mapped(cell, self._kept) for layer, cell in old.items()}
        )
        after = {layer: self._whole(cell, picture, layer) for layer, cell in new.items()}
        frames = picture.frames
        if output is not None and frames is None:
            sides = output.shape[3] // (self.last - self.first) * self.height, output.shape[4]
            frames = output.new_empty(*output.shape[:3], *sides)
        for layer, cell in new.items():
            for part, whole in zip(tensors(cell), tensors(after[layer]), strict=True):
                self._put(part, whole)
        if output is not None and frames is not None:
            self._put(output, frames)
        return picture._replace(done=self.stop, after=after, kept=kept, frames=frames)

    def _kept(self, part: Tensor) -> Tensor:
        """Of a cell cut to this strip, the rows that the next strip needs."""
        scale = part.shape[3] // (self.last - self.first)
        first = max(0, self.stop - self.halo) - self.first
        return part[..., first * scale : (self.stop - self.first) * scale, :].clone()

    def _whole(self, cell: Any, picture: Picture, layer: Hashable) -> Any:
        """The layer's next cell, of tensors for whole pictures: begun ones, else old ones of their shape."""
        begun = list(tensors(picture.after.get(layer))) or list(tensors(picture.before.get(layer)))

        def whole(part: Tensor) -> Tensor:
            candidate = begun.pop(0) if begun else None
            scale = part.shape[3] // (self.last - self.first)
            shape = (*part.shape[:3], self.height * scale, part.shape[4])
            if candidate is not None and candidate.shape == shape and candidate.dtype == part.dtype:
                return candidate
            return part.new_empty(shape)

        return mapped(cell, whole)

    def _put(self, part: Tensor, whole: Tensor) -> None:
        scale = part.shape[3] // (self.last - self.first)
        inner = part[..., (self.start - self.first) * scale : (self.stop - self.first) * scale, :]
        whole[..., self.start * scale : self.stop * scale, :].copy_(inner)
