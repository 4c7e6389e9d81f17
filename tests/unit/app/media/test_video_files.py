"""Other formats of a finished mp4, as independent programs read them: FFmpeg's own and ImageMagick."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image
from waiting import wait_for

from adaptive.types import VideoShape
from app.media.audio import AudioSamples
from app.media.formats import apart, writers
from app.media.formats.apart import ConversionDiskFull, ConversionFailed, ConversionTooLarge, convert_apart
from app.media.formats.made import is_made, make
from app.media.formats.reading import NoSuchFrame, read_frame
from app.media.formats.table import FORMATS, VideoFormat
from app.media.formats.writers import WRITERS, gif_times
from app.media.video import VideoWriter

HEIGHT, WIDTH, FRAMES = 48, 64, 13
LEFT, RIGHT = (200, 30, 40), (20, 60, 220)
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
needs_magick = pytest.mark.skipif(shutil.which("identify") is None, reason="ImageMagick is not installed")


def picture(number: int) -> NDArray[np.uint8]:
    """Red and blue halves, and a white bar that grows by four pixels a frame."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[:, : WIDTH // 2], frame[:, WIDTH // 2 :] = LEFT, RIGHT
    frame[:8, : 4 * number + 4] = 255
    return frame


def written(path: Path, fps: Fraction = Fraction(24), *, frames: int = FRAMES, sound: bool = False) -> Path:
    tone = np.sin(np.arange(44_100 * 2) / 20)[None].astype(np.float32) / 2
    samples = AudioSamples(tone, 44_100) if sound else None
    with VideoWriter(path, VideoShape(frames, HEIGHT, WIDTH), fps, samples) as writer:
        for number in range(frames):
            writer.write(picture(number)[None])
        writer.finish()
    return path


def bar(shown: NDArray[Any]) -> int:
    """The number of the frame, from the length of its bar."""
    return int((shown[2:6, :, 1].mean(0) > 150).sum()) // 4 - 1


def colours_are_right(shown: NDArray[Any], within: int) -> bool:
    left, right = shown[24:44, 4:28].mean((0, 1)), shown[24:44, 36:60].mean((0, 1))
    return bool(np.abs(left - LEFT).max() <= within and np.abs(right - RIGHT).max() <= within)


def probed(path: Path) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"]
    done = subprocess.run([*command, str(path)], check=True, capture_output=True, timeout=120)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def by_ffmpeg(path: Path) -> NDArray[np.uint8]:
    """All pictures as FFmpeg's program converts them `[frames, height, width, 3]`."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vsync", "passthrough"]
    command += ["-sws_flags", "accurate_rnd+full_chroma_int", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("fps", "sound"), [(Fraction(24), False), (Fraction(24000, 1001), True), (Fraction(60), True)]
)
def test_a_webm_has_every_frame_at_its_time_and_the_sound(tmp_path: Path, fps: Fraction, sound: bool) -> None:
    out = tmp_path / "video.webm"
    assert WRITERS["webm"](written(tmp_path / "video.mp4", fps, sound=sound), out) == FRAMES
    video, *others = probed(out)["streams"]
    assert (video["codec_name"], video["width"], video["height"]) == ("vp9", WIDTH, HEIGHT)
    assert video["nb_read_frames"] == str(FRAMES)
    assert abs(float(Fraction(video["r_frame_rate"]) - fps)) < 0.01
    assert (video["color_space"], video["color_range"]) == ("bt709", "tv")
    assert [other["codec_name"] for other in others] == (["opus"] if sound else [])
    assert float(probed(out)["format"]["duration"]) == pytest.approx(FRAMES / fps, abs=0.03)
    shown = by_ffmpeg(out)
    assert [bar(each) for each in shown] == list(range(FRAMES))
    assert colours_are_right(shown[6], within=3)


@needs_magick
@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(50)])
def test_a_gif_has_every_frame_and_the_length_of_the_video(tmp_path: Path, fps: Fraction) -> None:
    out = tmp_path / "video.gif"
    assert WRITERS["gif"](written(tmp_path / "video.mp4", fps), out) == FRAMES
    command = ["identify", "-format", "%T %W %H\n", str(out)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.split("\n")
    rows = [tuple(map(int, line.split())) for line in told if line]
    assert {row[1:] for row in rows} == {(WIDTH, HEIGHT)}
    starts = np.cumsum([0, *(row[0] for row in rows)])
    assert np.abs(starts - [round(100 * n / fps) for n in range(FRAMES + 1)]).max() == 0
    shown = magick_frames(out, tmp_path)
    assert [bar(each) for each in shown] == list(range(FRAMES))
    assert colours_are_right(shown[6], within=8)


def magick_frames(path: Path, folder: Path) -> list[NDArray[np.uint8]]:
    made = folder / "shown-%03d.png"
    subprocess.run(["convert", str(path), "-coalesce", str(made)], check=True, timeout=120)
    return [np.asarray(Image.open(each).convert("RGB")) for each in sorted(folder.glob("shown-*.png"))]


def test_grain_gives_a_gif_few_colours_to_look_up_and_black_and_white_stay() -> None:
    grain = np.random.default_rng(0).integers(118, 130, (64, 64, 3), np.uint8)
    coarse = writers.coarse(grain)
    assert len(np.unique(grain.reshape(-1, 3), axis=0)) > 10 * len(np.unique(coarse.reshape(-1, 3), axis=0))
    every = np.arange(256, dtype=np.uint8)
    assert np.abs(writers.coarse(every).astype(int) - every).max() <= 3
    assert [int(each) for each in writers.coarse(every)[[0, 255]]] == [0, 255]


@needs_magick
def test_a_gif_of_more_than_50_frames_a_second_loses_frames_and_keeps_its_speed(tmp_path: Path) -> None:
    out = tmp_path / "video.gif"
    assert WRITERS["gif"](written(tmp_path / "video.mp4", Fraction(60)), out) == 11
    assert [bar(each) for each in magick_frames(out, tmp_path)] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12]


@pytest.mark.parametrize(
    "fps", [Fraction(1), Fraction(24000, 1001), Fraction(30), Fraction(60), Fraction(120)]
)
@pytest.mark.parametrize("frames", [1, 2, 9, 241])
def test_no_frame_of_a_gif_is_too_short_for_browsers_and_the_whole_is_as_long_as_the_video(
    fps: Fraction, frames: int
) -> None:
    shown = gif_times(frames, fps)
    assert min(each.ticks for each in shown) >= 2
    assert [each.start for each in shown[1:]] == [each.start + each.ticks for each in shown[:-1]]
    assert abs(shown[-1].start + shown[-1].ticks - 100 * frames / fps) <= 1.5
    assert shown[-1].number < frames


@needs_magick
def test_a_webp_has_every_frame_and_its_colours(tmp_path: Path) -> None:
    out = tmp_path / "video.webp"
    assert WRITERS["webp"](written(tmp_path / "video.mp4"), out) == FRAMES
    shown = magick_frames(out, tmp_path)
    assert [bar(each) for each in shown] == list(range(FRAMES))
    assert shown[0].shape == (HEIGHT, WIDTH, 3)
    assert colours_are_right(shown[6], within=4)
    with Image.open(out) as animation:
        lengths = []
        for number in range(animation.n_frames):  # type: ignore[attr-defined]
            animation.seek(number)
            animation.load()
            lengths.append(animation.info["duration"])
    ends = np.array([1000 * n / 24 for n in range(1, FRAMES + 1)])
    assert np.abs(np.cumsum(lengths) - ends).max() < 1


def test_an_archive_has_every_frame_as_png_and_tells_the_rate(tmp_path: Path) -> None:
    out = tmp_path / "video.png.zip"
    assert WRITERS["png.zip"](written(tmp_path / "video.mp4", Fraction(24000, 1001)), out) == FRAMES
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        *names, last = archive.namelist()
        assert (names, last) == ([f"frame-{n:05}.png" for n in range(FRAMES)], "video.json")
        told = json.loads(archive.read("video.json"))
        shown = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    assert (told["fps"], told["frames"], told["pixels"]) == ("24000/1001", FRAMES, "lossy")
    assert [bar(each) for each in shown] == list(range(FRAMES))
    assert colours_are_right(shown[6], within=3)


@needs_ffmpeg
@pytest.mark.parametrize("fps", [Fraction(24), Fraction(24000, 1001)])
def test_a_frame_by_its_number_is_the_one_that_other_programs_show(tmp_path: Path, fps: Fraction) -> None:
    video = written(tmp_path / "video.mp4", fps, sound=True)
    expected = by_ffmpeg(video)
    for number in (0, 1, 7, FRAMES - 1, -1, -FRAMES):
        found = read_frame(video, number).astype(int)
        assert bar(found) == number % FRAMES
        assert np.abs(found - expected[number]).mean() < 3, "they differ at edges of colours only"
        assert np.abs(found - expected[number])[28:44, 8:24].mean() <= 1
    for number in (FRAMES, -FRAMES - 1):
        with pytest.raises(NoSuchFrame, match=f"the video has {FRAMES} frames"):
            read_frame(video, number)


def test_a_frame_far_from_the_last_key_frame_is_found(tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    with VideoWriter(video, VideoShape(300, 16, 16), 30) as writer:
        for number in range(300):
            writer.write(np.full((1, 16, 16, 3), 20 + number // 2, np.uint8))
        writer.finish()
    for number in (0, 249, 250, 251, 299):
        assert abs(float(read_frame(video, number).mean()) - (20 + number // 2)) < 1.5


def test_a_file_is_made_once_and_again_for_another_video(tmp_path: Path) -> None:
    video, out = written(tmp_path / "video.mp4"), tmp_path / "video.webp"
    make("webp", video, out, file_bytes=10**8)
    made = out.stat()
    make("webp", video, out, file_bytes=10**8)
    assert out.stat().st_ino == made.st_ino
    assert out.read_bytes()[8:12] == b"WEBP"
    written(video, frames=3)
    assert not is_made(video, out)
    make("webp", video, out, file_bytes=10**8)
    assert out.stat().st_size < made.st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["video.mp4", "video.webp"]


def test_what_cannot_be_made_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    video, out = written(tmp_path / "video.mp4"), tmp_path / "video.png.zip"
    with pytest.raises(ConversionDiskFull, match="2,000 bytes that are left"):
        make("png.zip", video, out, file_bytes=2000)
    (broken := tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ConversionFailed, match="Invalid data"):
        make("png.zip", broken, out, file_bytes=10**8)
    with pytest.raises(ConversionTooLarge, match="0 seconds of processor time"):
        convert_apart("png.zip", video, tmp_path / "part", file_bytes=10**8, cpu_seconds=0)
    monkeypatch.setattr(apart, "MEMORY_BYTES", 2**20)
    with pytest.raises(ConversionTooLarge, match="memory"):
        convert_apart("webm", video, tmp_path / "part", file_bytes=10**8)
    (tmp_path / "part").unlink(missing_ok=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mp4", "video.mp4"]


def test_a_file_that_a_busy_machine_does_not_finish_can_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "WALL_SECONDS", 0.0)
    with pytest.raises(apart.ConversionInterrupted, match="took more than 0 seconds"):
        convert_apart("webm", written(tmp_path / "v.mp4"), tmp_path / "part", file_bytes=10**8)


def test_the_process_that_makes_a_file_ends_with_the_one_that_asked(tmp_path: Path) -> None:
    os.mkfifo(video := tmp_path / "video.mp4")  # no end, and no beginning either
    call = f"convert_apart('webm', Path({str(video)!r}), Path({str(tmp_path / 'out')!r}), file_bytes=10**8)"
    script = f"from pathlib import Path; from app.media.formats.apart import convert_apart; {call}"
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        (child,) = wait_for(lambda: psutil.Process(parent.pid).children(), 120)
        # It has the threads that wait: for the video, and for its parent.
        wait_for(lambda: child.num_threads() > 1, 120)
        parent.kill()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 120)


def test_a_format_that_this_build_cannot_write_names_what_is_missing() -> None:
    assert [each.missing() for each in FORMATS.values()] == [None] * len(FORMATS)
    assert VideoFormat("x", "x/x", ("nonesuch",)).missing() == "encoder nonesuch"
    assert VideoFormat("x", "x/x", (), "nonesuch").missing() == "container nonesuch"
