"""How far a download is: bytes, rate and time left. Pure values and arithmetic."""

from collections import deque
from dataclasses import dataclass, replace

from app.jobs import Json

WINDOW_SECONDS = 10.0  # over which the rate is measured


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """`done_bytes` of `total_bytes` are on the disk, those of earlier downloads included.

    `received_bytes` came since the download began. The rate is None before it is known. `waits`: another
    process downloads the model, and this one only watches.
    """

    done_bytes: int
    total_bytes: int
    received_bytes: int = 0
    bytes_per_second: float | None = None
    waits: bool = False

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at the present rate; None if the rate is unknown or nothing comes."""
        if not self.bytes_per_second:
            return None
        return max(0, self.total_bytes - self.done_bytes) / self.bytes_per_second

    def as_json(self) -> Json:
        """The `download` object of a job."""
        left = self.seconds_left
        return {
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "bytes_per_second": None if self.bytes_per_second is None else round(self.bytes_per_second),
            "seconds_left": None if left is None else round(left, 1),
        }


class Rate:
    """Measures bytes a second over the last `WINDOW_SECONDS`."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def measured(self, progress: DownloadProgress, now: float) -> DownloadProgress:
        """The progress with its rate. `now` is in seconds of a monotonic clock."""
        self._seen.append((now, progress.done_bytes))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_SECONDS:
            self._seen.popleft()
        began_at, began_bytes = self._seen[0]
        if now - began_at < 0.5:
            return progress
        rate = max(0, progress.done_bytes - began_bytes) / (now - began_at)
        return replace(progress, bytes_per_second=rate)
