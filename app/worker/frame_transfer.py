"""Moves decoded frames from the device to the video writer, while the next chunk decodes.

Owns the conversion from the VAE's range to 8-bit pixels on the device and, where the device has streams, the
two page-locked buffers for the copy. Must not know how frames are decoded or encoded.
"""

import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptive.device.accelerator import has_streams, module_of
from adaptive.device.out_of_memory import is_out_of_memory, release_frames
from adaptive.pipelines.recorded_call import Sound
from app.media.audio import AudioSamples
from app.media.video import VideoWriter

# Frames converted at a time. Bounds the conversion's workspace for every chunk size.
_FRAMES_AT_A_TIME = 8
_BUFFERS = 2


def to_pixels(frames: Tensor) -> Tensor:
    """Convert `[C, f, H, W]` in -1..1 to uint8 `[f, H, W, C]` on the same device, rounding as diffusers does.

    diffusers scales and clamps in the VAE's own dtype, converts to float32 and rounds half to even
    (`VaeImageProcessor.denormalize`, `pt_to_numpy`, `numpy_to_pil`).
    """
    parts = [
        ((part * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).float() * 255).round().to(torch.uint8)
        for part in torch.split(frames, _FRAMES_AT_A_TIME, dim=1)
    ]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def samples_of(sound: Sound | None) -> AudioSamples | None:
    """The recorded sound as arrays for the video writer; None if there is none."""
    return None if sound is None else AudioSamples(sound.waveform.numpy(), sound.sample_rate)


class FrameTransfer:
    """Hands the frames of one video to its writer, chunk by chunk.

    Where the device has streams, the copy runs on one of its own through two page-locked buffers. The
    encoder's thread waits for it; the decoder does not.
    """

    def __init__(self, writer: VideoWriter, device: torch.device) -> None:
        self._writer = writer
        self._device = module_of(device)
        self._stream: Any = self._device.Stream(device) if has_streams(device) else None
        self._free: queue.Queue[Tensor] = queue.Queue()
        for _ in range(_BUFFERS):
            self._free.put(torch.empty(0, dtype=torch.uint8))

    def send(self, frames: Tensor) -> None:
        """Queue frames `[1, 3, f, H, W]` in -1..1; returns when their device memory may be reused.

        Where the device has no memory to convert all of them, fewer are converted at a time. Raises
        `VideoWriteError` if the encoder failed.
        """
        count = frames.shape[2]
        if count == 0:
            return
        pixels = _pixels_if_they_fit(frames[0])
        if pixels is None and count > 1:
            self.send(frames[:, :, : count // 2])
            self.send(frames[:, :, count // 2 :])
            return
        if pixels is None:
            pixels = to_pixels(frames[0].cpu())  # slower, with the same result
        if self._stream is None or pixels.device.type == "cpu":
            self._writer.write(pixels.cpu().numpy())
            return
        self._send_pinned(pixels)

    def _send_pinned(self, pixels: Tensor) -> None:
        buffer = self._take_buffer(pixels.numel())
        view = buffer[: pixels.numel()].view(pixels.shape)
        self._stream.wait_stream(self._device.current_stream(pixels.device))
        with self._device.stream(self._stream):
            view.copy_(pixels, non_blocking=True)
            copied = self._device.Event()
            copied.record()
        pixels.record_stream(self._stream)

        def read() -> NDArray[np.uint8]:
            copied.synchronize()
            return view.numpy()

        give_back: Callable[[], None] = lambda: self._free.put(buffer)  # noqa: E731
        self._writer.write_later(read, give_back)

    def _take_buffer(self, size: int) -> Tensor:
        while True:
            try:
                buffer = self._free.get(timeout=0.2)
            except queue.Empty:
                self._writer.check()  # a failed encoder returns no buffers
                continue
            return buffer if buffer.numel() >= size else torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _pixels_if_they_fit(frames: Tensor) -> Tensor | None:
    """`to_pixels(frames)`, or None after an out-of-memory of the device, whose tensors are released."""
    try:
        return to_pixels(frames)
    except Exception as error:
        if frames.device.type == "cpu" or not is_out_of_memory(error):
            raise
        release_frames(error)
        return None
