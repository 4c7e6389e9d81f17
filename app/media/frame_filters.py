"""Passes decoded frames through single filters of FFmpeg. Must not know files."""

from collections.abc import Iterator
from typing import Any

import av
from av.filter import Graph


class FrameFilter:
    """One filter, built again when the size or format of frames changes."""

    def __init__(self, name: str, arguments: str) -> None:
        self._name, self._arguments = name, arguments
        self._form: tuple[object, ...] | None = None
        self._graph = Graph()

    def push(self, frame: Any) -> Iterator[Any]:
        """The frames that come out when this one goes in."""
        form = frame.width, frame.height, frame.format.name, frame.time_base
        if form != self._form:
            yield from self.rest()
            self._build(frame)
            self._form = form
        self._graph.push(frame)
        yield from self._pulled()

    def rest(self) -> Iterator[Any]:
        """The frames that the filter still holds; afterwards it starts anew."""
        if self._form is None:
            return
        self._form = None
        self._graph.push(None)
        yield from self._pulled()

    def _build(self, frame: Any) -> None:
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        filtered = self._graph.add(self._name, self._arguments)
        source.link_to(filtered)
        filtered.link_to(self._graph.add("buffersink"))
        self._graph.configure()

    def _pulled(self) -> Iterator[Any]:
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield frame


def progressive(frames: Iterator[Any]) -> Iterator[Any]:
    """The frames without combs: each interlaced one becomes one frame, made of its two fields by `bwdif`.

    From the first interlaced frame on, all pass through the filter, which keeps progressive ones.
    """
    deinterlacer: FrameFilter | None = None
    for frame in frames:
        if deinterlacer is None and frame.interlaced_frame:
            deinterlacer = FrameFilter("bwdif", "mode=send_frame:deint=interlaced")
        if deinterlacer is None:
            yield frame
        else:
            yield from deinterlacer.push(frame)
    if deinterlacer is not None:
        yield from deinterlacer.rest()
