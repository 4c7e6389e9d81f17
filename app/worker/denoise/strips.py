"""Shows a job's video while it is denoised: a few small pictures of the clean estimate, at most one strip a
second.

The step's thread takes a small copy of some latent frames and does not wait for it; a thread makes the
pictures, writes them and tells. What goes wrong here never fails a job. Must not know the job table.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adaptive.denoise.preview.clean_estimate import NoEstimate, clean_estimate
from adaptive.denoise.preview.latent_layout import LatentLayout
from adaptive.denoise.preview.pixel_map import PixelMap, spread
from adaptive.denoise.watch import CallNext, DenoiseHandler, scheduler_name
from adaptive.device.accelerator import has_streams, module_of
from adaptive.device.out_of_memory import is_out_of_memory, release_frames
from adaptive.families import family_of
from adaptive.types import LatentShape, VideoShape
from app.artifacts.local_folder import JobArtifacts
from app.jobs import JobSpec
from app.loops import one_line
from app.media.thumbnails import write_jpeg
from app.worker.decoding import OnEvent
from app.worker.device_errors import device_fault
from app.worker.frame_transfer import to_pixels
from app.worker.loaded_model import LoadedModel

log = logging.getLogger(__name__)
SIDE = 128  # pixels
EVERY_SECONDS = 1.0


class Strips(DenoiseHandler):
    """Makes strips of one job's denoise by `pipe`; none if `shown` is None."""

    def __init__(
        self,
        pipe: Any,
        artifacts: JobArtifacts,
        shown: "ShownLatents | None",
        on_event: OnEvent,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._pipe = pipe
        self._artifacts = artifacts
        self._on_event = on_event
        self._every_seconds = every_seconds
        self._thread: threading.Thread | None = None
        self._taken: tuple[Callable[[], Tensor], list[int]] | None = None
        self._taken_at = float("-inf")
        self._shown = shown
        self.seconds_of_steps = 0.0  # in the step's thread

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Take the step, and a small copy of its estimate if a strip is due."""
        result = call_next(*args, **kwargs)
        if self._shown is not None and self._is_due(scheduler):
            started = time.perf_counter()
            try:
                self._take(self._shown, scheduler, args, kwargs, result)
            except Exception as error:
                self._failed(error)
            self.seconds_of_steps += time.perf_counter() - started
        return result

    def step_done(self, step: int, total: int) -> None:
        """A step of the pipeline is done: show what was taken in it."""
        if self._taken is None or self._shown is None:
            return
        (read, frames), self._taken = self._taken, None
        arguments = (self._shown, read, frames, step, total)
        self._thread = threading.Thread(target=self._write, args=arguments, name="strip")
        self._thread.start()

    def close(self) -> None:
        """Wait until no picture is being written."""
        self._taken = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _is_due(self, scheduler: Any) -> bool:
        assert self._shown is not None
        if self._thread is not None and self._thread.is_alive():
            return False
        is_time = time.monotonic() - self._taken_at >= self._every_seconds
        return is_time and scheduler_name(self._pipe, scheduler) == self._shown.layout.scheduler

    def _take(
        self,
        shown: "ShownLatents",
        scheduler: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        estimate = clean_estimate(scheduler, args, kwargs, result)
        frames = shown.frames()
        small = estimate.part(lambda tensor: shown.small(tensor, frames))
        self._taken = _to_host(small), frames
        self._taken_at = time.monotonic()

    def _failed(self, error: Exception) -> None:
        """Make no more strips, except after an out-of-memory, which may pass.

        Raises a fault of the device.
        """
        if device_fault(error) is not None:
            raise error
        if is_out_of_memory(error):
            release_frames(error)
            self._taken_at = time.monotonic()
            return
        self._shown = None
        log.warning("previews_unavailable reason=%s", one_line(error))
        reason = str(error) if isinstance(error, NoEstimate) else one_line(error)
        self._on_event("previews_unavailable", {"reason": reason})

    def _write(
        self, shown: "ShownLatents", read: Callable[[], Tensor], frames: list[int], step: int, total: int
    ) -> None:
        try:
            latents = shown.layout.normalised(read())
            if not latents.isfinite().all():
                return  # the end of the denoise says so, and by how many values
            for number, picture in enumerate(shown.pixel_map.pictures(latents)):
                pixels = to_pixels(picture.unsqueeze(1))[0].numpy()
                write_jpeg(self._artifacts.preview(number), pixels, side=SIDE, durable=False)
            told = [shown.video_frame(frame) for frame in frames]
            self._on_event("preview", {"step": step, "steps": total, "frames": told})
        except Exception as error:  # an interrupted job, or a full disk
            log.warning("preview_not_written reason=%s", one_line(error))


class ShownLatents:
    """What a strip of one job's latents needs."""

    def __init__(
        self, layout: LatentLayout, pixel_map: PixelMap, shape: LatentShape, ends: list[int]
    ) -> None:
        self.layout = layout
        self.pixel_map = pixel_map
        self._shape = shape
        self._ends = ends
        longer = max(shape.height, shape.width) * pixel_map.sub
        self._factor = max(1, longer // SIDE)

    def frames(self) -> list[int]:
        """Latent frames of a strip, spread over the video."""
        return spread(self.layout.frames(self._shape))

    def small(self, tensor: Tensor, frames: list[int]) -> Tensor:
        """These frames of a step's tensor, `[n, C, h, w]`, averaged to no more than the pictures show."""
        taken = self.layout.take(tensor, self._shape, frames).float()
        return taken if self._factor == 1 else functional.avg_pool2d(taken, self._factor)

    def video_frame(self, latent_frame: int) -> int:
        """The number of the video's frame that a latent frame begins with."""
        return 0 if latent_frame == 0 else self._ends[latent_frame - 1]


def shown_latents(model: LoadedModel, spec: JobSpec) -> ShownLatents | None:
    """What the model's strips for a request need; None where it cannot show latents."""
    layout, pixel_map = model.latent_layout, model.pixel_map
    if layout is None or pixel_map is None:
        return None
    traits = family_of(model.pipe.vae).traits_of(model.pipe.vae)
    try:
        shape = traits.latent_shape(VideoShape(spec.num_frames, spec.height, spec.width))
    except ValueError:
        return None
    return ShownLatents(
        layout, pixel_map, shape, [traits.video_frames(count + 1) for count in range(shape.frames)]
    )


def _to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Copy the tensor to the host without waiting; returns what waits for the copy and gives it."""
    if not has_streams(tensor.device):
        copied = tensor.cpu()
        return lambda: copied
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = module_of(tensor.device).Event()
    event.record(module_of(tensor.device).current_stream(tensor.device))

    def read() -> Tensor:
        event.synchronize()
        return host

    return read
