"""`framefit inspect` of videos and frames: how they were made, and nothing that a foreign file commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from adaptive.types import VideoShape
from app.media.metadata.note import Note, note_of
from app.media.metadata.png_text import add_note
from app.media.thumbnails import write_png
from app.media.video import VideoWriter

Framefit = Callable[..., Any]
FACTS = {"framefit": "1.2.3", "prompt": "a bear dances", "seed": "7", "decode": {"strategy": "chunked"}}


def video(path: Path, note: Note | None) -> Path:
    with VideoWriter(path, VideoShape(2, 16, 32), 8, note=note) as writer:
        writer.write(np.zeros((2, 16, 32, 3), np.uint8))
        writer.finish()
    return path


def foreign(path: Path, comment: str) -> Path:
    """A file of another program."""
    with av.open(str(path), "w", format="webm") as file:
        file.metadata.update({"title": comment, "comment": comment})
        stream = file.add_stream("libvpx-vp9", rate=8)
        (stream.width, stream.height), stream.pix_fmt = (32, 16), "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), np.uint8), format="rgb24")
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def test_a_video_and_a_frame_tell_prompt_seed_and_decode(tmp_path: Path, framefit: Framefit) -> None:
    video(tmp_path / "video.mp4", note_of("a bear dances", FACTS))
    write_png(tmp_path / "frame.png", np.zeros((16, 32, 3), np.uint8))
    add_note(tmp_path / "frame.png", note_of("a bear dances", FACTS))
    told = framefit("inspect", "video.mp4", "frame.png")
    assert told.exit_code == 0, told.output
    lines = [line.split(maxsplit=1) for line in told.stdout.splitlines()]
    assert lines.count(["prompt", "a bear dances"]) == 2
    assert ["format", "mp4, 32x16, 2 frames, 8 a second, 0.25 s"] in lines
    assert ["format", "png, 32x16"] in lines
    document = json.loads(framefit("inspect", "video.mp4", "frame.png", "--json").stdout)
    assert [each["made"] for each in document["videos"]] == [FACTS, FACTS]
    assert document["faults"] == []


def test_a_video_without_metadata_says_so(tmp_path: Path, framefit: Framefit) -> None:
    video(tmp_path / "video.mp4", None)
    assert "another program, or without metadata" in framefit("inspect", "video.mp4").stdout


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    "comment",
    [
        "\x1b]0;owned\x07\x1b[2J\x9b31m\r\ngone\u202e",
        json.dumps({"framefit": "\x1b[2J\n", "\x1b[31m": "\x1b[2J", "prompt": ["\u202e\x07"]}),
        json.dumps({"framefit": "x", "prompt": "y" * 100_000}),
        "[" * 50_000,
    ],
)
def test_what_a_foreign_file_says_cannot_command_the_terminal(
    tmp_path: Path, framefit: Framefit, comment: str, as_json: bool
) -> None:
    foreign(tmp_path / "foreign.webm", comment)
    told = framefit("inspect", "foreign.webm", *(["--json"] if as_json else []))
    assert told.exit_code == 0, told.output
    assert all(each.isprintable() or each == "\n" for each in told.output)
    if as_json:
        assert json.loads(told.stdout)["videos"][0]["format"] == "webm"
    else:
        assert all(len(line) < 1600 for line in told.stdout.splitlines())


def test_a_damaged_video_is_one_line_and_not_taken_for_weights(tmp_path: Path, framefit: Framefit) -> None:
    whole = video(tmp_path / "video.mp4", None).read_bytes()
    (tmp_path / "video.mp4").write_bytes(whole[:40])
    told = framefit("inspect", "video.mp4")
    assert told.exit_code == 1
    assert "video.mp4: it is damaged" in told.stderr
    assert "Traceback" not in told.output
