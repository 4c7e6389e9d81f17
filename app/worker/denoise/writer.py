"""Writes checkpoints in a thread, one at a time, so that the denoise does not wait for the disk."""

import threading
import time
from dataclasses import dataclass

from app.worker.denoise.checkpoint_file import Checkpoint, CheckpointFiles


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that is on disk, or the error that kept it from there."""

    step: int
    total: int
    size_bytes: int
    seconds: float
    error: Exception | None = None


class CheckpointWriter:
    """Writes at most one checkpoint at a time. `written` returns the last one that ended, once."""

    def __init__(self, files: CheckpointFiles) -> None:
        self._files = files
        self._thread: threading.Thread | None = None
        self._written: Written | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint in the background, after the one before."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(checkpoint,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def written(self) -> Written | None:
        """What has been written since the last call, None for nothing."""
        if self.is_busy:
            return None
        written, self._written = self._written, None
        return written

    def _write(self, checkpoint: Checkpoint) -> None:
        started = time.monotonic()
        size_bytes: int = 0
        error: Exception | None = None
        try:
            size_bytes = self._files.write(checkpoint)
        except Exception as failure:  # a full disk, or a host without memory for the file
            error = failure
        seconds = time.monotonic() - started
        step = checkpoint.denoised.steps
        self._written = Written(step, checkpoint.total, size_bytes, seconds, error)
