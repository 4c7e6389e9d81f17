"""A slice of the corpus of clips; `tests/bench/clips.py` reads all of it."""

from __future__ import annotations

from pathlib import Path

import clip_corpus
import pytest
import reference_clip
from clip_corpus import Case

from app.media.clips import ClipError, open_clip

CASES = {case.name: case for case in clip_corpus.cases()}
COMPARED = (
    "libx264 yuv420p10le",
    "prores_ks yuv422p10le",
    "libvpx-vp9 yuv420p",
    "alpha ffv1 yuva444p10le",
    "full range x265 yuv420p10le",
    "untagged 96x640",
    "primaries 5",
    "Display P3, sRGB",
    "transfer 5",
    "PQ MaxCLL 4000",
    "HLG libx265",
    "sar 16/9",
    "turned, sar",
    "interlaced libx264",
)


@pytest.mark.skipif(reference_clip.FFMPEG is None, reason=reference_clip.REASON)
@pytest.mark.parametrize("name", COMPARED)
def test_pixels_are_those_of_ffmpegs_accurate_scaler(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = clip_corpus.write(case, tmp_path / f"clip{case.suffix}")
    clip = open_clip(path)
    found = list(clip.frames(clip.geometry(None, None, multiple=1, default=1)))
    mean, most = reference_clip.difference(case, found, reference_clip.read(case, path))
    assert mean <= reference_clip.MEAN
    assert most <= reference_clip.MOST


@pytest.mark.parametrize(
    "case", [case for case in CASES.values() if not case.code], ids=lambda case: case.name
)
def test_every_clip_has_its_size_rate_and_number_of_frames(case: Case, tmp_path: Path) -> None:
    clip = open_clip(clip_corpus.write(case, tmp_path / f"clip{case.suffix}"))
    found = clip.count(), (clip.width, clip.height), clip.fps
    assert found == (case.frames, case.size_shown, case.rate)


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.code], ids=lambda case: case.name)
def test_what_cannot_be_read_right_is_refused_with_its_code(case: Case, tmp_path: Path) -> None:
    path = clip_corpus.write(case, tmp_path / f"clip{case.suffix}")
    with pytest.raises(ClipError, match="clip") as caught:
        open_clip(path).count()
    assert caught.value.code == case.code
