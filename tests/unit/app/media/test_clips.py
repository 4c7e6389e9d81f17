"""Reading clips: every frame, upright, at the size and the rate that are wanted."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import clip_corpus
import numpy as np
import pytest
from av.stream import Disposition
from clip_corpus import Case
from encode_clips import picture, write_clip

from app.media.clips import Clip, ClipError, Geometry, open_clip
from app.media.fit import frame


def plain(clip: Clip) -> list[np.ndarray]:
    return list(clip.frames(clip.geometry(None, None, multiple=1, default=1)))


def test_frames_come_unchanged_and_in_order(tmp_path: Path) -> None:
    clip = open_clip(write_clip(tmp_path / "clip.mkv", 5, size=(48, 32)))
    assert (clip.width, clip.height, clip.fps) == (48, 32, 24)
    frames = plain(clip)
    assert len(frames) == clip.count() == 5
    assert all(np.array_equal(frame, picture(number, 48, 32)) for number, frame in enumerate(frames))


def test_what_is_beyond_a_multiple_is_cut_off_around_the_middle(tmp_path: Path) -> None:
    clip = open_clip(write_clip(tmp_path / "clip.mkv", 1, size=(54, 36)))
    geometry = clip.geometry(None, None, multiple=8, default=16)
    assert geometry.size == (48, 32)
    assert np.array_equal(next(clip.frames(geometry)), picture(0, 54, 36)[2:34, 3:51])


@pytest.mark.parametrize(
    ("fit", "gravity", "scaled", "part"),
    [
        ("cover", "west", (64, 32), (0, 0, 32, 32)),
        ("cover", "east", (64, 32), (0, 0, 32, 32)),
        ("contain", "north", (32, 16), (0, 0, 32, 16)),
        ("contain", "center", (32, 16), (0, 8, 32, 24)),
        ("contain", "southeast", (32, 16), (0, 16, 32, 32)),
        ("stretch", "center", (32, 32), (0, 0, 32, 32)),
    ],
)
def test_fit_and_gravity_place_a_clip_as_they_place_an_image(
    tmp_path: Path, fit: str, gravity: str, scaled: tuple[int, int], part: tuple[int, int, int, int]
) -> None:
    clip = open_clip(write_clip(tmp_path / "clip.mkv", 1, size=(96, 48)))
    geometry = clip.geometry(32, 32, multiple=8, default=16, fit=fit, gravity=gravity)
    assert (geometry.scaled, geometry.size) == (scaled, (32, 32))
    assert frame((96, 48), (32, 32), fit, gravity).filled == part
    shown = next(clip.frames(geometry))
    left, top, right, bottom = part
    inside = np.zeros((32, 32), bool)
    inside[top:bottom, left:right] = True
    assert not shown[~inside].any()
    assert shown[inside].any(axis=-1).mean() > 0.9
    if fit == "cover":
        whole = next(clip.frames(Geometry((64, 32), (64, 32))))
        assert np.array_equal(shown, whole[:, :32] if gravity == "west" else whole[:, 32:])


def test_what_is_beyond_a_multiple_is_cut_where_gravity_says(tmp_path: Path) -> None:
    clip = open_clip(write_clip(tmp_path / "clip.mkv", 1, size=(54, 36)))
    geometry = clip.geometry(None, None, multiple=8, default=16, gravity="southeast")
    assert np.array_equal(next(clip.frames(geometry)), picture(0, 54, 36)[4:, 6:])


@pytest.mark.parametrize(
    ("wanted", "scaled", "size"),
    [((32, 64), (128, 64), (32, 64)), ((64, None), (64, 32), (64, 32)), ((None, 64), (128, 64), (128, 64))],
)
def test_pictures_are_scaled_to_cover_what_is_wanted(
    tmp_path: Path,
    wanted: tuple[int | None, int | None],
    scaled: tuple[int, int],
    size: tuple[int, int],
) -> None:
    clip = open_clip(write_clip(tmp_path / "clip.mkv", 1, size=(96, 48)))
    geometry = clip.geometry(*wanted, multiple=8, default=16)
    assert (geometry.scaled, geometry.size) == (scaled, size)
    assert next(clip.frames(geometry)).shape == (size[1], size[0], 3)


def test_a_clip_too_small_and_a_side_that_does_not_fit_are_refused(tmp_path: Path) -> None:
    clip = open_clip(write_clip(tmp_path / "clip.mkv", 1, size=(48, 24)))
    with pytest.raises(ClipError, match="48x24, less than 32"):
        clip.geometry(None, None, multiple=8, default=32)
    with pytest.raises(ValueError, match="width must be a multiple of 8, got 20"):
        clip.geometry(20, None, multiple=8, default=8)


@pytest.mark.parametrize(
    ("fps", "shown"),
    [(Fraction(24), [0, 1, 2, 3]), (Fraction(12), [0, 2]), (Fraction(48), [0, 0, 1, 1, 2, 2, 3, 3])],
)
def test_a_rate_repeats_and_drops_frames(tmp_path: Path, fps: Fraction, shown: list[int]) -> None:
    clip = open_clip(write_clip(tmp_path / "clip.mkv", 4))
    frames = clip.frames(clip.geometry(None, None, multiple=1, default=1), fps)
    expected = [picture(number, 64, 64) for number in shown]
    assert all(np.array_equal(*pair) for pair in zip(frames, expected, strict=True))
    assert clip.count(fps) == len(shown)
    assert clip.count(fps, at_most=2) == 2


def test_a_frame_that_is_shown_for_longer_is_repeated_at_a_constant_rate(tmp_path: Path) -> None:
    clip = open_clip(write_clip(tmp_path / "clip.mkv", 3, times=[0, 1, 4]))
    assert len(plain(clip)) == 3
    frames = list(clip.frames(clip.geometry(None, None, multiple=1, default=1), Fraction(24)))
    shown = [next(n for n in range(3) if np.array_equal(frame, picture(n, 64, 64))) for frame in frames]
    assert shown[:5] == [0, 1, 1, 1, 2]


def turned(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """The mp4 with that matrix for display: what phones write instead of turning pixels."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    matrix = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "quarters"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)]
)
def test_a_clip_filmed_upright_is_read_upright(
    tmp_path: Path, matrix: tuple[int, int, int, int], quarters: int
) -> None:
    lying = open_clip(write_clip(tmp_path / "lying.mp4", 1, size=(64, 32)))
    expected = np.rot90(plain(lying)[0], quarters)  # counterclockwise
    clip = open_clip(turned(write_clip(tmp_path / "clip.mp4", 1, size=(64, 32)), *matrix))
    assert (clip.height, clip.width) == expected.shape[:2]
    assert np.array_equal(plain(clip)[0], expected)


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0)])
def test_a_clip_whose_matrix_shows_nothing_is_read_as_it_is_stored(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    stored = open_clip(write_clip(tmp_path / "stored.mp4", 1, size=(64, 32)))
    clip = open_clip(turned(write_clip(tmp_path / "clip.mp4", 1, size=(64, 32)), *matrix))
    assert np.array_equal(plain(clip)[0], plain(stored)[0])


def test_what_is_no_video_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "song.mp4").write_bytes(b"la la la")
    with pytest.raises(ClipError, match=r"song\.mp4 cannot be read as video"):
        open_clip(tmp_path / "song.mp4")
    with pytest.raises(ClipError, match="cannot be read"):
        open_clip(tmp_path / "nothing.mp4")


def test_a_clip_that_is_cut_off_is_an_error_and_not_a_shorter_clip(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 40, size=(128, 128))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ClipError, match=r"clip\.mp4"):
        open_clip(path).count()


def test_a_songs_cover_is_no_clip_and_a_clips_cover_is_not_the_clip(tmp_path: Path) -> None:
    def with_cover(path: Path, *, video: bool) -> Path:
        with av.open(str(path), "w") as file:
            cover = file.add_stream("png", rate=1)
            cover.width, cover.height, cover.pix_fmt = 96, 96, "rgb24"
            cover.disposition = Disposition.attached_pic
            clip = file.add_stream("libx264", rate=24) if video else file.add_stream("aac", rate=48_000)
            if video:
                clip.width, clip.height, clip.pix_fmt = 64, 32, "yuv420p"
            shown = av.VideoFrame.from_ndarray(picture(0, 96, 96), format="rgb24")
            file.mux(cover.encode(shown))
            file.mux(cover.encode(None))
            if video:
                for number in range(3):
                    frame = av.VideoFrame.from_ndarray(picture(number, 64, 32), format="rgb24")
                    file.mux(clip.encode(frame))
                file.mux(clip.encode(None))
        return path

    clip = open_clip(with_cover(tmp_path / "clip.mp4", video=True))
    assert (clip.width, clip.height, clip.count()) == (64, 32, 3)
    with pytest.raises(ClipError, match=r"song\.mp4 has no video stream"):
        open_clip(with_cover(tmp_path / "song.mp4", video=False))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_other_programs_append_to_a_clip_is_no_damage(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"clip{suffix}", 4)
    with path.open("ab") as file:
        file.write(b"\xff\xff\xff\xffnote: filmed in June" * 20)
    assert open_clip(path).count() == 4


def test_an_interlaced_clip_at_another_rate_has_the_frames_of_each_moment(tmp_path: Path) -> None:
    case = Case("interlaced", "libx264", ".mp4", interlaced=True, frames=6)
    clip = open_clip(clip_corpus.write(case, tmp_path / "clip.mp4"))
    every = plain(clip)
    half = list(clip.frames(clip.geometry(None, None, multiple=1, default=1), Fraction(12)))
    assert len(half) == clip.count(Fraction(12)) == 3
    assert all(np.array_equal(*pair) for pair in zip(half, every[::2], strict=True))


def test_a_clip_that_changes_its_shape_is_refused_and_one_that_changes_its_size_is_not(
    tmp_path: Path,
) -> None:
    sizes = {"same": ((64, 32), (128, 64)), "other": ((64, 32), (64, 64))}
    for name, parts in sizes.items():
        streams = [
            write_clip(tmp_path / f"{name}{number}.h264", 2, size=size) for number, size in enumerate(parts)
        ]
        (tmp_path / f"{name}.h264").write_bytes(b"".join(path.read_bytes() for path in streams))
    clip = open_clip(tmp_path / "same.h264")
    assert [frame.shape for frame in plain(clip)] == [(32, 64, 3)] * 4
    with pytest.raises(ClipError, match="changes its shape from 64x32 to 64x64") as caught:
        open_clip(tmp_path / "other.h264").count()
    assert caught.value.code == "clip_shape_unsupported"
