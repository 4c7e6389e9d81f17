"""What a file says of how it was made, as other programs and `media_document` read it."""

import io
import json
import shutil
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptive.types import VideoShape
from app.media.formats.writers import WRITERS, write_frame
from app.media.metadata.inspected import is_media, media_document
from app.media.metadata.mp4_comment import ROOM_BYTES
from app.media.metadata.note import Note, facts_in, note_of
from app.media.metadata.png_text import read_png, with_note
from app.media.thumbnails import write_png
from app.media.video import VideoWriter

PROMPT = 'ein Bär "tanzt" \u96ea\U0001f43b\n\x1b[31m\x00 und winkt'
FACTS = {"framefit": "1.2.3", "prompt": PROMPT, "seed": str(2**64 - 1)}
SHAPE = VideoShape(3, 32, 48)


def written(path: Path, first: Note | None, final: Note | None = None) -> Path:
    with VideoWriter(path, SHAPE, 8, note=first) as writer:
        for number in range(3):
            writer.write(np.full((1, 32, 48, 3), 60 * number + 40, np.uint8))
        writer.finish(final)
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    final = note_of(PROMPT, {**FACTS, "decode": {"strategy": "chunked", "exact": True}})
    return written(tmp_path / "video.mp4", note_of(PROMPT, FACTS), final)


def tags_by_ffprobe(path: Path) -> dict[str, str]:
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    command = ["ffprobe", "-v", "error", "-show_entries", "format_tags", "-of", "json", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120)
    return {name.lower(): text for name, text in json.loads(done.stdout)["format"]["tags"].items()}


def test_a_note_has_no_character_that_a_terminal_obeys_and_says_the_same() -> None:
    prompt = "a\x7f\x9b31m \u202e\u2066 \u200b\U000e0001 \u2028 B\xe4r \U0001f43b"
    note = note_of(prompt, {**FACTS, "prompt": prompt})
    assert (note.title + note.comment).isprintable()
    assert facts_in(note) == {**FACTS, "prompt": prompt}
    assert "B\xe4r \U0001f43b" in note.comment


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_prompt_and_decode_are_in_the_tags_that_other_programs_read(video: Path, form: str) -> None:
    path = video
    if form == "webm":
        WRITERS["webm"](video, path := video.with_suffix(".webm"))
    tags = tags_by_ffprobe(path)
    assert tags["title"] == 'ein Bär "tanzt" \u96ea\U0001f43b  [31m  und winkt'
    facts = json.loads(tags["comment"])
    assert facts == {**FACTS, "decode": {"strategy": "chunked", "exact": True}}
    told = media_document(path)
    assert (told["format"], told["made"], told["comment"]) == (form, facts, None)
    assert (told["width"], told["height"], told["fps"], told["sound"]) == (48, 32, 8, False)
    assert (told["frames"], told["seconds"]) == (3 if form == "mp4" else None, 0.375)


def test_frames_and_archives_of_the_video_say_it_too(video: Path, tmp_path: Path) -> None:
    facts = media_document(video)["made"]
    (tmp_path / "frame.png").write_bytes(write_frame(video, 1))
    WRITERS["png.zip"](video, tmp_path / "video.zip")
    with zipfile.ZipFile(tmp_path / "video.zip") as archive:
        (tmp_path / "other.png").write_bytes(archive.read("frame-00001.png"))
        assert json.loads(json.loads(archive.read("video.json"))["comment"]) == facts
    for name in ("frame.png", "other.png"):
        told = media_document(tmp_path / name)
        assert (told["format"], told["width"], told["height"], told["made"]) == ("png", 48, 32, facts)
    assert (tmp_path / "frame.png").read_bytes() == (tmp_path / "other.png").read_bytes()
    with Image.open(tmp_path / "frame.png") as picture:
        assert json.loads(picture.info["Comment"]) == facts, "Pillow reads it"
    if shutil.which("vipsheader"):
        command = ["vipsheader", "-f", "png-comment-1-Comment", str(tmp_path / "frame.png")]
        told = subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode()
        assert json.loads(told) == facts


def test_a_video_without_a_note_says_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "video.mp4", None)
    assert {"title", "comment"}.isdisjoint(tags_by_ffprobe(path))
    WRITERS["webm"](path, tmp_path / "video.webm")
    assert {"title", "comment"}.isdisjoint(tags_by_ffprobe(tmp_path / "video.webm"))
    for name in ("video.mp4", "video.webm"):
        assert b"framefit" not in (tmp_path / name).read_bytes()
    assert b"iTXt" not in write_frame(path, 0)


def test_a_comment_that_is_too_long_for_its_room_leaves_the_first_one(tmp_path: Path) -> None:
    longer = note_of("", {**FACTS, "more": "x" * (ROOM_BYTES + 1)})
    told = media_document(written(tmp_path / "video.mp4", note_of("", FACTS), longer))
    assert told["made"] == FACTS
    told = media_document(written(tmp_path / "video.mp4", note_of("", FACTS)))
    assert told["made"] == FACTS, "no other at the end"


def test_the_frames_of_a_video_are_the_same_with_a_note_and_without(tmp_path: Path, video: Path) -> None:
    plain = written(tmp_path / "plain.mp4", None)
    mdat = [path.read_bytes().partition(b"mdat")[2] for path in (video, plain)]
    assert mdat[0] == mdat[1]


def test_a_note_in_a_png_leaves_its_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
    write_png(tmp_path / "a.png", pixels)
    plain = (tmp_path / "a.png").read_bytes()
    noted = with_note(plain, note_of("title", FACTS))
    assert (np.asarray(Image.open(io.BytesIO(noted))) == pixels).all()
    (tmp_path / "a.png").write_bytes(noted)
    width, height, note = read_png(tmp_path / "a.png")
    assert (width, height, note.title, facts_in(note)) == (7, 9, "title", FACTS)
    assert with_note(plain, Note("", "")) == plain
    with pytest.raises(ValueError, match="not a PNG"):
        with_note(b"\xff\xd8", Note("", "x"))


def test_halves_of_surrogate_pairs_do_not_end_a_job(tmp_path: Path) -> None:
    note = note_of("a\ud800b", {"framefit": "1", "prompt": "a\udfffb"})
    assert media_document(written(tmp_path / "video.mp4", note, note))["made"] == {
        "framefit": "1",
        "prompt": "a?b",
    }


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", 5, 4, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in (header, *chunks)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("comment", "shown"),
    [
        (b"[" * 100_000, "[" * 4000),
        (b'{"framefit": 7}', '{"framefit": 7}'),
        (b'["framefit"]', '["framefit"]'),
        (b'{"framefit": "1"', '{"framefit": "1"'),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"9" * 5000, "9" * 4000),
    ],
)
def test_a_foreign_comment_is_text_and_not_believed(tmp_path: Path, comment: bytes, shown: str) -> None:
    path = tmp_path / "foreign.png"
    path.write_bytes(png((b"iTXt", b"Comment\0\0\0\0\0" + comment)))
    told = media_document(path)
    assert (told["made"], told["comment"]) == (None, shown)


def test_texts_that_could_be_of_any_size_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "foreign.png"
    bomb = zlib.compress(b" " * 50_000_000)
    path.write_bytes(
        png((b"zTXt", b"Comment\0\0" + bomb), (b"iTXt", b"Comment\0\1\0\0\0" + bomb))
        + struct.pack(">I", 2**31 - 1)
        + b"tEXtComment\0never ends"
    )
    assert media_document(path) == {
        "format": "png",
        "width": 5,
        "height": 4,
        "made": None,
        "title": None,
        "comment": None,
    }


@pytest.mark.parametrize(
    ("content", "media"),
    [
        (b"\x89PNG\r\n\x1a\n", True),
        (b"\0\0\0\x18ftypisom", True),
        (b"\x1aE\xdf\xa3", True),
        (b"GGUF", False),
        (b"", False),
        (struct.pack("<Q", 20) + b'{"a":{}}', False),
    ],
)
def test_weights_are_told_from_pictures_and_broken_files_are_errors(
    tmp_path: Path, content: bytes, media: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert is_media(path) is media
    if media:
        with pytest.raises((ValueError, OSError)):
            media_document(path)
