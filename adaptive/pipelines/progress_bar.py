"""A bar of decoded video frames, in notebooks and terminals, beside the pipeline's own bar of its steps.

It follows the events of a decode and knows nothing else of it.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptive.decoding.events import DecodeEvent

# Events that make a decode slower than planned, in words.
_NEWS = {"oom": "out of memory, continuing", "spill": "memory overflowed into the host's"}


class DecodeBar:
    """Shows the decodes of a pipeline, each by a bar of its own. Call it with every event of them.

    The pipeline's `progress_bar` makes the bars, so that `pipe.set_progress_bar_config` holds for them, too;
    tqdm does where a pipeline has none. Decodes of several threads have several bars.
    """

    def __init__(self, pipe: Any) -> None:
        self._make = getattr(pipe, "progress_bar", None) or _tqdm_bar
        self._of_thread = threading.local()

    @contextmanager
    def shown(self, video_frames: int | None) -> Iterator[None]:
        """Show a bar for a decode by this thread; it stays where it is when the decode ends.

        There is none where the number of frames is not known before.
        """
        if video_frames is None:
            yield
            return
        with self._make(total=video_frames) as self._of_thread.bar:
            self._of_thread.bar.set_description("Decoding")
            try:
                yield
            finally:
                del self._of_thread.bar

    def __call__(self, event: "DecodeEvent") -> None:
        """Show an event in this thread's bar, if there is one."""
        bar = getattr(self._of_thread, "bar", None)
        if bar is None:
            return
        if event.kind in _NEWS:
            bar.set_postfix_str(_NEWS[event.kind])
        elif event.kind == "chunk":
            bar.set_description(_title(event.data))
            bar.update(event.data["video_frames_done"] - bar.n)


def _title(data: Mapping[str, Any]) -> str:
    at_once = data["frames_per_chunk"]
    if data["tiles"] > 1:
        return f"Decoding in {data['tiles']} tiles"
    if at_once >= data["latent_frames_total"]:
        return "Decoding"
    return f"Decoding {at_once} latent frame{'s' if at_once > 1 else ''} at a time"


def _tqdm_bar(total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total)
