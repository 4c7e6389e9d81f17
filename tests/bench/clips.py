"""Reads every clip of the corpus and compares its pixels with ffmpeg's accurate scaler.

    python tests/bench/clips.py

Needs ffmpeg with zscale (Debian: apt install ffmpeg). Takes about a minute. Ends with 1 if a clip is neither
read right nor refused with the code that the corpus names. Writes `results/clips.md`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import clip_corpus  # noqa: E402 - after the path
import reference_clip  # noqa: E402
from clip_corpus import Case  # noqa: E402

from app.media.clips import ClipError, open_clip  # noqa: E402

OUT = HERE / "results" / "clips.md"
HEAD = """# Clips

{cases} clips made by code: {read} are read, {refused} refused. Differences from ffmpeg's accurate scaler
are of 255: the largest mean of a channel, and the largest of all samples but a thousandth. Command:
`python tests/bench/clips.py`.

| clip | pixels | shown | rate | mean | largest |
|---|---|---|---|---|---|
"""


def row(case: Case, folder: Path) -> tuple[str, bool]:
    """The line of one clip, and whether it is as it must be."""
    path = clip_corpus.write(case, folder / f"clip{case.suffix}")
    facts = f"| {case.name} | {case.pixels} "
    try:
        clip = open_clip(path)
        found = list(clip.frames(clip.geometry(None, None, multiple=1, default=1)))
    except ClipError as error:
        return f"{facts}| refused: {error.code} | | | |", error.code == case.code
    if case.code is not None:
        return f"{facts}| **read, not refused** | | | |", False
    shown, rate = (clip.width, clip.height), clip.fps
    facts += f"| {shown[0]}x{shown[1]} | {rate} "
    if shown != case.size_shown or rate != case.rate or len(found) != case.frames:
        return f"{facts}| **wrong** | {len(found)} frames |", False
    mean, most = reference_clip.difference(case, found, reference_clip.read(case, path))
    right = mean <= reference_clip.MEAN and most <= reference_clip.MOST
    return f"{facts}| {mean:.2f} | {most:.1f} |", right


def main() -> int:
    """Read all clips and write the table."""
    cases = list(clip_corpus.cases())
    rows, wrong = [], []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            line, right = row(case, Path(folder))
            rows.append(line)
            if not right:
                wrong.append(line)
    refused = sum(case.code is not None for case in cases)
    text = HEAD.format(cases=len(cases), read=len(cases) - refused, refused=refused)
    OUT.write_text(text + "\n".join(rows) + "\n")
    print("\n".join(wrong) or f"all {len(cases)} clips are right")  # noqa: T201 - the command's output
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
