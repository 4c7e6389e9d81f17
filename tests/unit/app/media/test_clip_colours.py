"""Colours of clips as numbers: what is exact, what published values say, and what the writer keeps."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import clip_corpus
import numpy as np
import pytest
import reference_clip
from clip_corpus import FULL, LIMITED, Case
from numpy.typing import NDArray

from adaptive.types import VideoShape
from app.media.clips import open_clip
from app.media.colorimetry.video_colour import (
    BT709,
    BT2020,
    Transfer,
    nits_to_pq,
    pq_to_nits,
    to_bt709,
    to_light,
    tone_mapped,
)
from app.media.video import VideoWriter
from app.media.video_pixels import PictureReader, PictureWriter

needs_ffmpeg = pytest.mark.skipif(reference_clip.FFMPEG is None, reason=reference_clip.REASON)


def frames_of(path: Path) -> NDArray[np.float64]:
    clip = open_clip(path)
    return np.array(list(clip.frames(clip.geometry(None, None, multiple=1, default=1))), np.float64)


@pytest.mark.parametrize("full", [LIMITED, FULL])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le"])
def test_a_clip_is_as_bright_as_its_pictures_were(pixels: str, full: int, tmp_path: Path) -> None:
    case = Case("plain", pixels=pixels, tags=(1, 1, 1, full))
    found = frames_of(clip_corpus.write(case, tmp_path / "clip.mkv"))
    made = np.array([clip_corpus.picture(number, *case.size) for number in range(case.frames)]) * 255
    assert np.abs((found - made).mean((0, 1, 2))).max() < 0.25


@pytest.mark.parametrize(
    ("nits", "coded"), [(0.0, 0.0), (100.0, 0.5081), (203.0, 0.5807), (1000.0, 0.7518), (10_000.0, 1.0)]
)
def test_pq_has_its_published_values(nits: float, coded: float) -> None:
    assert nits_to_pq(np.array([nits]))[0] == pytest.approx(coded, abs=5e-5)
    assert pq_to_nits(nits_to_pq(np.array([nits])))[0] == pytest.approx(nits, abs=1e-6)


def test_hlg_has_its_published_values() -> None:
    """BT.2100: the curve's joint; BT.2408: 75 % is the reference white, 203 cd/m2 on a display of 1000."""
    assert to_light(Transfer.HLG, np.array([0.5]))[0] == pytest.approx(1 / 12)
    assert to_light(Transfer.HLG, np.array([1.0]))[0] == pytest.approx(1, abs=1e-6)
    assert 1000 * to_light(Transfer.HLG, np.array([0.75]))[0] ** 1.2 == pytest.approx(203, abs=1)


def test_bt2020_becomes_bt709_by_the_matrix_of_bt2087() -> None:
    published = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    assert np.allclose(to_bt709(BT2020), published, atol=1e-4)
    assert np.allclose(to_bt709(BT709), np.eye(3))


@pytest.mark.parametrize("primaries", [4, 5, 6, 7, 8, 9, 11, 12, 22])
def test_white_stays_white(primaries: int) -> None:
    assert np.allclose(to_bt709(primaries) @ np.ones(3), 1, atol=1e-9)


@pytest.mark.parametrize("peak", [203.0, 400.0, 1000.0, 4000.0, 10_000.0])
def test_tone_mapping_keeps_shadows_rises_and_ends_at_white(peak: float) -> None:
    light = np.linspace(0, peak / 203, 4001)
    mapped = tone_mapped(light, peak)
    assert (np.diff(mapped) > 0).all()
    assert mapped[-1] == pytest.approx(1, abs=1e-6)
    dark = light < 0.02
    assert np.allclose(mapped[dark], light[dark], atol=1e-9)


def grey(case: Case, level: int, tmp_path: Path) -> int:
    """What a 10-bit grey of that level becomes."""
    planes = [np.full((case.size[1], case.size[0]), level), *[np.full((32, 48), 512)] * 2]
    frame = clip_corpus.coded(case, 0)
    for plane, values in zip(frame.planes, planes, strict=True):
        lines = np.zeros((plane.height, plane.line_size // 2), np.uint16)
        lines[:, : plane.width] = values
        plane.update(lines.tobytes())
    path = clip_corpus.write(case, tmp_path / "clip.mp4", lambda _: frame)
    found = frames_of(path)
    assert np.ptp(found) == 0
    return int(found[0, 0, 0, 0])


@pytest.mark.parametrize(
    ("transfer", "level", "shown"),
    [
        (16, 64, 0),  # black
        (16, 64 + round(876 * 0.5807), 231),  # PQ's reference white: 91 % of SDR's
        (16, 64 + round(876 * 0.7518), 255),  # the peak of 1000 cd/m2
        (16, 940, 255),
        (18, 64, 0),
        (18, 64 + round(876 * 0.75), 231),  # HLG's reference white
        (18, 940, 255),
    ],
)
def test_the_reference_white_of_hdr_is_nearly_the_white_of_sdr(
    transfer: int, level: int, shown: int, tmp_path: Path
) -> None:
    case = Case("flat", "libx264", ".mp4", "yuv420p10le", tags=(9, transfer, 9, LIMITED), frames=1)
    assert grey(case, level, tmp_path) == pytest.approx(shown, abs=1)


@needs_ffmpeg
def test_the_container_says_the_shape_of_pixels_before_the_stream(tmp_path: Path) -> None:
    case = Case("sar", "libx264", ".mkv", sar=Fraction(4, 3))
    path, out = clip_corpus.write(case, tmp_path / "stream.mkv"), tmp_path / "container.mkv"
    subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-c", "copy", "-aspect", "3:1", out], check=True)
    assert open_clip(path).width == 128
    clip = open_clip(out)
    assert (clip.width, clip.height) == (192, 64)
    assert frames_of(out).shape == (3, 64, 192, 3)


def made(number: int) -> NDArray[np.float64]:
    return clip_corpus.picture(number, 96, 64) * 255


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "video.mp4"
    with VideoWriter(path, VideoShape(5, 64, 96), Fraction(24000, 1001)) as writer:
        writer.write(np.rint(np.array([made(number) for number in range(5)])).astype(np.uint8))
        writer.finish()
    return path


def test_what_the_writer_gives_the_encoder_is_what_the_reader_reads() -> None:
    picture = np.rint(made(0)).astype(np.uint8)
    off = PictureReader("h264").picture(PictureWriter().frame(picture), 96, 64) - made(0)
    assert np.abs(off.mean((0, 1))).max() < 0.05
    assert np.quantile(np.abs(off), 0.99) < 2


def test_what_the_writer_wrote_comes_back_through_the_reader(written: Path) -> None:
    off = frames_of(written) - np.array([made(number) for number in range(5)])
    assert np.abs(off.mean((0, 1, 2))).max() < 0.5  # the encoder's loss
    assert np.quantile(np.abs(off), 0.99) < 8


@needs_ffmpeg
def test_what_the_writer_wrote_is_tagged_and_comes_back_through_ffmpeg(written: Path) -> None:
    case = Case("written", "libx264", ".mp4", frames=5)
    off = reference_clip.read(case, written) - np.array([made(number) for number in range(5)])
    assert np.abs(off.mean((0, 1, 2))).max() < 0.5
    assert np.quantile(np.abs(off), 0.99) < 8
    stream = probed(written)
    names = ("color_space", "color_transfer", "color_primaries")
    assert [stream[name] for name in names] == ["bt709"] * 3
    assert (stream["color_range"], stream["pix_fmt"]) == ("tv", "yuv420p")
    assert stream["r_frame_rate"] == stream["avg_frame_rate"] == "24000/1001"


def probed(path: Path) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]
    (stream,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
    return dict(stream)


@pytest.mark.parametrize("level", [0, 1, 16, 127, 128, 200, 254, 255])
def test_grey_is_written_without_a_tint_and_within_one_step(level: int, tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with VideoWriter(path, VideoShape(2, 64, 96), 24) as writer:
        writer.write(np.full((2, 64, 96, 3), level, np.uint8))
        writer.finish()
    assert np.abs(frames_of(path) - level).max() <= 1
