"""Frames to H.264: what is in the file, and how its errors reach the one who writes."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from numpy.typing import NDArray

from adaptive.types import VideoShape
from app.media.video import VideoWriteError, VideoWriter
from app.worker.frame_transfer import FrameTransfer, to_pixels

SHAPE = VideoShape(frames=12, height=64, width=96)


def flat(frames: int, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.full((frames, SHAPE.height, SHAPE.width, 3), colour, np.uint8)


@pytest.mark.parametrize("chunks", [(12,), (1,) * 12, (5, 6, 1)])
def test_every_frame_arrives_once_in_order_with_its_colour(tmp_path: Path, chunks: tuple[int, ...]) -> None:
    colours = [(20 * i, 255 - 20 * i, 100) for i in range(12)]
    path = tmp_path / "video.mp4"
    with VideoWriter(path, SHAPE, 24) as writer:
        done = 0
        for count in chunks:
            writer.write(np.concatenate([flat(1, colour) for colour in colours[done : done + count]]))
            done += count
        writer.finish()
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        seen = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        assert stream.average_rate == 24
        assert float(stream.duration * stream.time_base) == pytest.approx(12 / 24)
    assert len(seen) == 12
    for frame, colour in zip(seen, colours, strict=True):
        # The library's default conversion back assumes BT.601 below HD; it must still be near.
        assert np.abs(frame.mean((0, 1)) - colour).max() < 30
    assert list(tmp_path.iterdir()) == [path]


def write(path: Path, counts: Sequence[int], error: Exception | None = None) -> None:
    """Write chunks of so many frames, then finish, or leave with the error."""
    with VideoWriter(path, SHAPE, 24) as writer:
        for count in counts:
            writer.write(flat(count, (1, 2, 3)))
        if error is not None:
            raise error
        writer.finish()


@pytest.mark.parametrize("frames", [0, 11, 13])
def test_a_wrong_number_of_frames_is_an_error_and_leaves_no_file(tmp_path: Path, frames: int) -> None:
    with pytest.raises(VideoWriteError, match=f"12 frames expected, got {frames}"):
        write(tmp_path / "video.mp4", [frames])
    assert list(tmp_path.iterdir()) == []


def test_leaving_early_stops_the_thread_and_leaves_no_file(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(KeyError):
        write(tmp_path / "video.mp4", [3], KeyError())
    assert set(threading.enumerate()) <= before, "those of earlier tests may end meanwhile"
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_encoder_reaches_the_writer_while_it_writes(tmp_path: Path) -> None:
    with pytest.raises(VideoWriteError, match=r"video\.mp4"):
        write(tmp_path / "missing" / "video.mp4", [1] * 100)


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from adaptive.types import VideoShape
from app.media.video import VideoWriteError, VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 255, (60, 128, 128, 3), np.uint8)
try:
    with VideoWriter(Path(sys.argv[1]), VideoShape(60, 128, 128), 24) as writer:
        writer.write(noise)
        writer.finish()
except VideoWriteError as error:
    sys.exit(42 if error.disk_full else 1)
"""


def test_a_full_disk_is_distinguished_from_other_errors(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", FILL_THE_DISK, str(tmp_path / "video.mp4")], check=False)
    assert result.returncode == 42
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pixels_are_those_of_diffusers(dtype: torch.dtype) -> None:
    video = (torch.randn(1, 3, 11, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.8).to(dtype)
    (pictures,) = VideoProcessor(vae_scale_factor=8).postprocess_video(video, output_type="pil")
    expected = np.stack([np.asarray(picture) for picture in pictures])
    assert np.array_equal(to_pixels(video[0]).numpy(), expected)


def test_a_transfer_skips_steps_that_finished_no_frame(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", SHAPE, 24) as writer:
        transfer = FrameTransfer(writer, torch.device("cpu"))
        for count in (0, 7, 0, 5):
            transfer.send(torch.zeros(1, 3, count, SHAPE.height, SHAPE.width))
        writer.finish()
    assert writer.frames_written == 12
