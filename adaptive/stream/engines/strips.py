"""Strips: run a decoder's last layers on one horizontal band of the frames at a time, with the same result.

Most memory of a decode is in the layers of full resolution. A row of their output depends on a few rows of
their input only. They can therefore run on a strip that is extended by a *halo*, the rows on either side that
its own rows depend on; the output of the halo rows is discarded. Norms must not mix positions.

The temporal state stays that of whole frames. A strip reads its rows of the state and writes the new ones in
place, so that no second copy is needed and the next chunk may use other strips or none. A strip overwrites
rows that lie in the halo of the next strip; a copy of those is kept until then.

The earlier layers run once on whole frames (`StripEngine.begin`), the later ones strip by strip (`finish`).
Between strips the chunk is an `UnfinishedChunk` in the stream's state. If a strip fails, the completed ones
remain valid and the next step resumes after them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adaptive.stream.engines.engine import UNFINISHED_CHUNK, RuledEngine, State
from adaptive.stream.intercept import Forward
from adaptive.stream.state import map_tensors, tensors


class Tail(NamedTuple):
    """The later layers of a decoder, from `entry` to the end. No other layer uses the input of `entry`.

    - `before`: the modules that the decoder's forward calls before `entry`, each on the output of the last.
    - `after`: the modules that it calls after `entry`.
    - `halo`: rows of the input of `entry`, on either side, that a row of the result depends on.
    """

    before: tuple[nn.Module, ...]
    entry: nn.Module
    after: tuple[nn.Module, ...]
    halo: int

    def layers(self) -> frozenset[nn.Module]:
        """Return every module from `entry` on, submodules included."""
        return frozenset(layer for part in (self.entry, *self.after) for layer in part.modules())


class UnfinishedChunk(NamedTuple):
    """A chunk of which the tail has done the first rows.

    - `entry` `[B, C, n, h, w]` is the tail's input, with `rows_per_latent` rows for each latent row. The rows
      before `done` are complete.
    - `limit` and `ended` are those of the chunk's pass at `entry`.
    - `before`: the states of the tail's layers before this chunk. Rows that are done may be overwritten.
    - `after`: their states after this chunk, as far as they are done.
    - `kept`: copies of rows of `before` above `done`, which the next strip needs.
    - `frames`: the output for whole frames, as far as it is done; None before the first output.
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
    """A `RuledEngine` whose `tail` can run in strips. The module's forward must draw no random numbers."""

    def __init__(self, module: nn.Module, *, tail: Tail, **options: Any) -> None:
        """`options` are those of `RuledEngine`."""
        super().__init__(module, overridden=(*tail.before, tail.entry), **options)
        self._tail = tail
        self._tail_layers = tail.layers()

    def begin(self, state: State, chunk: Tensor, *, limit: int, ended: bool) -> State:
        """See `StripwiseEngine.begin`. Moves the tail's layer states into the unfinished chunk."""
        layer_states = dict(state)
        chunk_pass = self._chunk_pass(layer_states, limit=limit, ended=ended)
        caught: list[Tensor] = []

        def catch(_module: nn.Module, _forward: Forward, frames: Tensor, *_: Any, **__: Any) -> Tensor:
            caught.append(frames)
            channels = self._sink.in_channels
            assert isinstance(channels, int)
            return frames.new_empty(frames.shape[0], channels, 0, *frames.shape[3:])

        def no_output(module: Any, _forward: Forward, frames: Tensor, *_: Any, **__: Any) -> Tensor:
            chunk_pass.no_output = True
            return frames.new_empty(frames.shape[0], module.out_channels, 1, 1, 1)

        self._run(chunk_pass, chunk, {self._tail.entry: catch, self._sink: no_output})
        (entry,) = caught
        before: dict[Hashable, Any] = {
            layer: layer_states.pop(layer) for layer in list(layer_states) if layer in self._tail_layers
        }
        scale = entry.shape[3] // chunk.shape[3]
        layer_states[UNFINISHED_CHUNK] = UnfinishedChunk(
            entry, scale, 0, chunk_pass.limit, chunk_pass.ended, before, {}, {}, None
        )
        return layer_states

    def finish(self, state: State, rows: int) -> Iterator[tuple[Tensor | None, State]]:
        """See `StripwiseEngine.finish`."""
        while UNFINISHED_CHUNK in state:
            frames, state = self._strip(state, rows)
            yield frames, state
            del frames

    def _strip(self, state: State, rows: int) -> tuple[Tensor | None, State]:
        unfinished: UnfinishedChunk = state[UNFINISHED_CHUNK]
        height = unfinished.entry.shape[3]
        strip = _Strip.of(unfinished, rows, self._tail.halo)
        old = {layer: strip.cut_state(layer, unfinished) for layer in unfinished.before}
        chunk_pass = self._chunk_pass(dict(old), limit=unfinished.limit, ended=unfinished.ended)

        def enter(_module: nn.Module, forward: Forward, frames: Tensor, *args: Any, **options: Any) -> Any:
            return forward(strip.cut_rows(frames), *args, **options)

        def pass_on(_module: nn.Module, _forward: Forward, frames: Tensor, *_: Any, **__: Any) -> Tensor:
            return frames

        skipped: dict[nn.Module, Callable[..., Any]] = dict.fromkeys(self._tail.before, pass_on)
        output = self._run(chunk_pass, unfinished.entry, {**skipped, self._tail.entry: enter})
        unfinished = strip.committed(unfinished, old, chunk_pass.layer_states, output)
        rest = {key: value for key, value in state.items() if key != UNFINISHED_CHUNK}
        if unfinished.done < height:
            return None, {**rest, UNFINISHED_CHUNK: unfinished}
        return unfinished.frames, {**rest, **unfinished.after}


class _Strip(NamedTuple):
    """Rows `start` to `stop` of the tail's input; `first` to `last` include the halo.

    `height` is the number of rows of the whole frame there.
    """

    first: int
    start: int
    stop: int
    last: int
    height: int
    halo: int

    @classmethod
    def of(cls, unfinished: UnfinishedChunk, rows: int, halo: int) -> _Strip:
        """Return the next strip of `rows` latent rows."""
        height, start = unfinished.entry.shape[3], unfinished.done
        stop = min(height, start + rows * unfinished.rows_per_latent)
        return cls(max(0, start - halo), start, stop, min(height, stop + halo), height, halo)

    def cut_rows(self, frames: Tensor) -> Tensor:
        """Return the rows of this strip and its halo."""
        return frames[..., self.first : self.last, :]

    def cut_state(self, layer: Hashable, unfinished: UnfinishedChunk) -> Any:
        """Return the layer's old state for this strip and halo, overwritten rows from their kept copies."""
        above = tensors(unfinished.kept.get(layer))

        def cut(tensor: Tensor) -> Tensor:
            scale = tensor.shape[3] // self.height
            kept, below = next(above, None), tensor[..., self.start * scale : self.last * scale, :]
            return below if kept is None else torch.cat([kept, below], 3)

        return map_tensors(unfinished.before[layer], cut)

    def committed(
        self,
        unfinished: UnfinishedChunk,
        old: Mapping[Hashable, Any],
        new: Mapping[Hashable, Any],
        output: Tensor | None,
    ) -> UnfinishedChunk:
        """Return the chunk with this strip done.

        All allocations, which may fail, precede the first overwrite.
        """
        kept = (
            {}
            if self.stop == self.height
            else {layer: map_tensors(state, self._rows_to_keep) for layer, state in old.items()}
        )
        after = {layer: self._whole(state, unfinished, layer) for layer, state in new.items()}
        frames = unfinished.frames
        if output is not None and frames is None:
            sides = output.shape[3] // (self.last - self.first) * self.height, output.shape[4]
            frames = output.new_empty(*output.shape[:3], *sides)
        for layer, state in new.items():
            for part, whole in zip(tensors(state), tensors(after[layer]), strict=True):
                self._write(part, whole)
        if output is not None and frames is not None:
            self._write(output, frames)
        return unfinished._replace(done=self.stop, after=after, kept=kept, frames=frames)

    def _rows_to_keep(self, part: Tensor) -> Tensor:
        """Return a copy of the rows that the next strip needs, from a state cut to this strip."""
        scale = part.shape[3] // (self.last - self.first)
        first = max(0, self.stop - self.halo) - self.first
        return part[..., first * scale : (self.stop - self.first) * scale, :].clone()

    def _whole(self, state: Any, unfinished: UnfinishedChunk, layer: Hashable) -> Any:
        """Return tensors for whole frames that take the layer's new state.

        They are those of earlier strips, else the old state's if their shapes fit, else new ones.
        """
        begun = list(tensors(unfinished.after.get(layer))) or list(tensors(unfinished.before.get(layer)))

        def whole(part: Tensor) -> Tensor:
            candidate = begun.pop(0) if begun else None
            scale = part.shape[3] // (self.last - self.first)
            shape = (*part.shape[:3], self.height * scale, part.shape[4])
            if candidate is not None and candidate.shape == shape and candidate.dtype == part.dtype:
                return candidate
            return part.new_empty(shape)

        return map_tensors(state, whole)

    def _write(self, part: Tensor, whole: Tensor) -> None:
        """Copy the strip's own rows of `part` into `whole`."""
        scale = part.shape[3] // (self.last - self.first)
        inner = part[..., (self.start - self.first) * scale : (self.stop - self.first) * scale, :]
        whole[..., self.start * scale : self.stop * scale, :].copy_(inner)
