"""Sheets of pictures: which frames are in them, where, and that one is made once for a video."""

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptive.types import VideoShape
from app.media import spritesheet
from app.media.spritesheet import SheetError, SheetMaker
from app.media.video import VideoWriter


def grey_video(path: Path, frames: int, width: int = 64, height: int = 32) -> Path:
    """Frame n of N is grey: from black to white."""
    levels = np.linspace(16, 240, frames).round().astype(np.uint8)
    with VideoWriter(path, VideoShape(frames, height, width), 8) as writer:
        for level in levels:
            writer.write(np.full((1, height, width, 3), level, np.uint8))
        writer.finish()
    return path


def cells(sheet: Path, columns: int, rows: int) -> list[int]:
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("L"), np.int64)
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    return [
        round(float(pixels[row * height : (row + 1) * height, column * width : (column + 1) * width].mean()))
        for row in range(rows)
        for column in range(columns)
    ]


@pytest.mark.parametrize(
    ("frames", "grid", "shown"),
    [
        (1, (1, 1), [0]),
        (3, (3, 1), [0, 1, 2]),
        (9, (4, 3), list(range(9))),
        (33, (4, 4), [0, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31]),
    ],
)
def test_a_sheet_has_frames_from_the_whole_video_in_order(
    tmp_path: Path, frames: int, grid: tuple[int, int], shown: list[int]
) -> None:
    video = grey_video(tmp_path / "video.mp4", frames)
    sheet = SheetMaker().sheet(video, tmp_path / "sheet.jpg")
    with Image.open(sheet) as picture:
        assert (picture.format, picture.size) == ("JPEG", (grid[0] * 64, grid[1] * 32))
    levels = np.linspace(16, 240, frames).round()
    expected = [levels[number] for number in shown] + [0] * (grid[0] * grid[1] - len(shown))
    assert np.abs(np.array(cells(sheet, *grid)) - expected).max() <= 3


def test_large_frames_are_scaled_and_long_videos_cost_their_key_frames_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spritesheet, "MOST_FRAMES", 20)
    video = grey_video(tmp_path / "video.mp4", 21, 640, 320)
    with Image.open(SheetMaker().sheet(video, tmp_path / "sheet.jpg")) as picture:
        assert picture.size == (256, 128), "one key frame, scaled"


def test_a_sheet_is_made_once_and_again_for_another_video(tmp_path: Path) -> None:
    maker, video, out = SheetMaker(), grey_video(tmp_path / "video.mp4", 3), tmp_path / "sheet.jpg"
    first = maker.sheet(video, out).read_bytes()
    Image.new("RGB", (8, 8)).save(kept := io.BytesIO(), "JPEG")
    made_ns = out.stat().st_mtime_ns
    out.write_bytes(kept.getvalue())
    os.utime(out, ns=(made_ns, made_ns))
    assert maker.sheet(video, out).read_bytes() == kept.getvalue()
    os.utime(video, ns=(made_ns + 10**9, made_ns + 10**9))
    assert maker.sheet(video, out).read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet.jpg", "video.mp4"]


def test_one_sheet_is_made_at_a_time_and_who_waits_too_long_is_told(tmp_path: Path) -> None:
    maker, video = SheetMaker(wait_seconds=0.01), grey_video(tmp_path / "video.mp4", 1)
    with maker._turn, pytest.raises(SheetError) as refusal:
        maker.sheet(video, tmp_path / "sheet.jpg")
    assert refusal.value.busy
    patient, made = SheetMaker(), []
    threads = [
        threading.Thread(target=lambda: made.append(patient.sheet(video, tmp_path / "s.jpg")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4


@pytest.mark.parametrize("content", [None, b"", b"no video at all"])
def test_a_video_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    video = tmp_path / "video.mp4"
    if content is not None:
        video.write_bytes(content)
    with pytest.raises(SheetError, match=r"video.mp4 cannot be read") as refusal:
        SheetMaker().sheet(video, tmp_path / "sheet.jpg")
    assert not refusal.value.busy
