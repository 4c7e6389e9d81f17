"""Measures `photo-pan` on photographs at 512x320: `python tests/bench/demonstration.py --backgrounds FOLDER`.

The photographs are those of `app/pipelines/builtin/train/photos.py`, at their full size; no weight of the
model depends on any of them. A clip is compared with another resampling of the boxes that the camera passes,
in float64 with a longer filter. `--sheet FILE` draws a contact sheet of all of them; `--write` writes the
results and a sheet of the photographs in the public domain.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from app.pipelines.builtin.train.photos import HELD_OUT, TRAINING, Photo, locate  # noqa: E402
from app.pipelines.photo_pan import MODEL_FOLDER, PhotoPanPipeline  # noqa: E402
from app.pipelines.photo_pan.camera import Box, boxes  # noqa: E402
from app.pipelines.photo_pan.prompt import motion_of  # noqa: E402
from app.pipelines.photo_pan.rules import size_for  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "demonstration.json"
PROMPTS = ("pan right", "pan up", "zoom in", "zoom out")
FREE = {"coffee", "dandelion", "astronaut", "rocket"}  # CC0 or in the public domain: may be drawn here
LOBES = 8
Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Clip:
    """The figures of one clip. `psnr_db`: mean over frames; `shift_px`, `asked_px`: of the whole clip."""

    photo: str
    photo_size: tuple[int, int]
    size: tuple[int, int]
    prompt: str
    enlarged: float
    psnr_db: float
    worst_psnr_db: float
    shift_px: tuple[float, float]
    asked_px: tuple[float, float]
    sharpness: float
    worst_sharpness: float
    outside_px: float
    flat_border_px: int
    processor_seconds: float


def ideal(photo: Pixels, box: Box, size: tuple[int, int]) -> Pixels:
    """The box [H, W, 3] of a photo, resampled by a windowed sinc of `LOBES` lobes along each axis."""
    left, top, right, bottom = box
    rows = _weights(photo.shape[0], top, bottom, size[1])
    columns = _weights(photo.shape[1], left, right, size[0])
    down = (rows @ photo.reshape(photo.shape[0], -1)).reshape(size[1], -1, 3)
    return np.clip(np.einsum("xk,ykc->yxc", columns, down, optimize=True), 0, 255)


def _weights(length: int, begin: float, end: float, count: int) -> Pixels:
    """[count, length]: how much each pixel of a line counts for each pixel of its part."""
    scale = (end - begin) / count
    centres = begin + (np.arange(count) + 0.5) * scale - 0.5
    distance = (np.arange(length) - centres[:, None]) / max(1.0, scale)
    weights = np.sinc(distance) * np.sinc(distance / LOBES) * (np.abs(distance) < LOBES)
    whole: Pixels = weights / weights.sum(1, keepdims=True)
    return whole


def psnr_db(made: Pixels, wanted: Pixels) -> float:
    """Of values in 0..255."""
    return float(10 * np.log10(255**2 / np.mean((made - wanted) ** 2)))


def luma(frame: Pixels) -> Pixels:
    """[H, W] of an RGB frame [H, W, 3]."""
    grey: Pixels = frame @ np.array([0.299, 0.587, 0.114])
    return grey


def sharpness(frame: Pixels) -> float:
    """The mean absolute gradient of the luma."""
    grey = luma(frame)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def shift_px(before: Pixels, after: Pixels) -> tuple[float, float]:
    """How far content moved (x, y) between two frames: phase correlation, with the peak between pixels."""
    height, width = before.shape[:2]
    window = np.outer(np.hanning(height), np.hanning(width))
    first, second = (np.fft.fft2((luma(one) - luma(one).mean()) * window) for one in (before, after))
    cross = second * first.conj()
    found = np.fft.ifft2(cross / (np.abs(cross) + 1e-6)).real
    y, x = np.unravel_index(int(found.argmax()), found.shape)
    return (
        _signed(x, width) + _between(found[y], int(x)),
        _signed(y, height) + _between(found[:, x], int(y)),
    )


def _signed(place: Any, length: int) -> int:
    return int(place) if place < length // 2 else int(place) - length


def _between(line: Pixels, peak: int) -> float:
    before, at, after = (line[(peak + step) % len(line)] for step in (-1, 0, 1))
    side = 1 if after > before else -1
    other = max(after, before)
    return side * float(other / (other + at)) if other > 0 else 0.0


def flat_border_px(frame: Pixels, wanted: Pixels) -> int:
    """Rows and columns at the edges that repeat their neighbour where the photo does not: a smear."""
    count = 0
    for turn in range(4):
        one, other = np.rot90(luma(frame), turn), np.rot90(luma(wanted), turn)
        for row in range(one.shape[0] // 2):
            step = np.abs(one[row] - one[row + 1]).mean()
            if step > 0.5 * np.abs(other[row] - other[row + 1]).mean():
                break
            count += 1
    return count


def measured(pipe: Any, photo: Photo, backgrounds: Path, prompt: str, frames: int) -> tuple[Clip, Pixels]:
    """One clip's figures and its frames [T, H, W, 3]."""
    with Image.open(locate(photo, backgrounds)) as file:
        image = file.convert("RGB")
    size = size_for(image.size)[0] or (288, 192)
    began = time.process_time()
    made = pipe(
        image,
        prompt=prompt,
        width=size[0],
        height=size[1],
        num_frames=frames,
        output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).frames[0]
    seconds = time.process_time() - began
    clip = np.round(made.astype(float) * 255)
    way = boxes(image.size, size, motion_of(prompt), frames)
    pixels = np.asarray(image).astype(float)
    looked_at = range(0, frames, 4)
    wanted = [ideal(pixels, way[number], size) for number in looked_at]
    pairs = [*zip(clip[looked_at], wanted, strict=True)]
    scales = [(right - left) / size[0] for left, _, right, _ in way]
    moves = [shift_px(one, other) for one, other in pairwise(clip)]
    first, last = way[0], way[-1]
    outside = max(
        max(-b[0], -b[1], b[2] - image.width, b[3] - image.height) / s
        for b, s in zip(way, scales, strict=True)
    )
    likeness = [psnr_db(one, other) for one, other in pairs]
    sharp = [sharpness(one) / sharpness(other) for one, other in pairs]
    return (
        Clip(
            photo.name,
            image.size,
            size,
            prompt,
            round(max(1.0, *(1 / scale for scale in scales)), 3),
            round(float(np.mean(likeness)), 2),
            round(min(likeness), 2),
            (round(sum(x for x, _ in moves), 1), round(sum(y for _, y in moves), 1)),
            (round((first[0] - last[0]) / scales[0], 1), round((first[1] - last[1]) / scales[0], 1)),
            round(float(np.mean(sharp)), 3),
            round(min(sharp), 3),
            round(max(0.0, outside), 6),
            max(flat_border_px(one, other) for one, other in pairs),
            round(seconds, 2),
        ),
        clip,
    )


def sheet_of(rows: list[tuple[str, Pixels]]) -> Image.Image:
    """Frames of every clip in a row: the first, three between, the last."""
    width, height = 256, 160
    sheet = Image.new("RGB", (5 * width, len(rows) * (height + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, clip) in enumerate(rows):
        draw.text((4, row * (height + 14)), name, fill="black")
        for column, number in enumerate(np.linspace(0, len(clip) - 1, 5).round().astype(int)):
            frame = Image.fromarray(clip[number].astype(np.uint8)).resize(
                (width, height), Image.Resampling.LANCZOS
            )
            sheet.paste(frame, (column * width, row * (height + 14) + 14))
    return sheet


def table_of(clips: list[Clip], frames: int) -> str:
    """The results as Markdown."""
    pans = [clip for clip in clips if clip.prompt.startswith("pan")]
    misses = [math.dist(clip.shift_px, clip.asked_px) for clip in pans]
    sharp = [clip for clip in clips if clip.enlarged == 1]
    photos = len({clip.photo for clip in clips})

    def row(what: str, told: Callable[[list[Clip]], object]) -> str:
        return f"| {what} | {told(clips)} | {told(sharp)} |"

    lines = [
        "# The demonstration\n",
        f"Output of `python tests/bench/demonstration.py` on {photos} photographs: {len(clips)} clips of "
        f"{frames} frames, 2 steps. Processor time is that of one thread.\n",
        "| figure | all clips | where nothing is enlarged |\n| --- | --- | --- |",
        row("PSNR against the ideally resampled photo, mean (dB)", lambda some: _mean(some, "psnr_db")),
        row("PSNR, worst frame (dB)", lambda some: min(clip.worst_psnr_db for clip in some)),
        row("sharpness against the ideally resampled photo", lambda some: _mean(some, "sharpness")),
        row("sharpness, worst frame", lambda some: min(clip.worst_sharpness for clip in some)),
        row("revealed beyond the photo (px)", lambda some: max(clip.outside_px for clip in some)),
        row("rows and columns of smear", lambda some: max(clip.flat_border_px for clip in some)),
        f"| miss of a pan, worst (px) | {max(misses):.2f} | |",
        f"| processor seconds a clip, median | {np.median([c.processor_seconds for c in clips]):.1f} | |\n",
        "| photo | its size | video | prompt | enlarged | dB | worst | shift | asked | sharpness | worst "
        "| outside | smear | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(_row, clips)]) + "\n"


def _row(clip: Clip) -> str:
    cells = [clip.photo, _sides(clip.photo_size), _sides(clip.size), clip.prompt, clip.enlarged]
    cells += [clip.psnr_db, clip.worst_psnr_db]
    # A zoom has no shift of its own.
    pans = clip.prompt.startswith("pan")
    cells += ["{}, {}".format(*each) if pans else "" for each in (clip.shift_px, clip.asked_px)]
    cells += [clip.sharpness, clip.worst_sharpness, f"{clip.outside_px:g}", clip.flat_border_px]
    return f"| {' | '.join(map(str, [*cells, clip.processor_seconds]))} |"


def _mean(clips: list[Clip], name: str) -> str:
    return f"{np.mean([getattr(clip, name) for clip in clips]):.2f}"


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def main() -> None:
    """Measure, print, and keep what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backgrounds", type=Path, default=Path("/usr/share/backgrounds"))
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--photos", nargs="*", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe = PhotoPanPipeline.from_pretrained(MODEL_FOLDER)
    pipe.set_progress_bar_config(disable=True)
    clips, rows, free = [], [], []
    chosen = [*HELD_OUT, *(photo for photo in TRAINING if photo.name in FREE)]
    for photo in (one for one in chosen if not given.photos or one.name in given.photos):
        for prompt in PROMPTS:
            clip, frames = measured(pipe, photo, given.backgrounds, prompt, given.frames)
            clips.append(clip)
            named = (f"{photo.name}: {prompt}", frames)
            rows.append(named)
            free += [named] if photo.name in FREE else []
            print(json.dumps(asdict(clip)), flush=True)  # noqa: T201
    if given.sheet is not None:
        sheet_of(rows).save(given.sheet, quality=85)
    if given.write:
        RESULTS.write_text(json.dumps([asdict(clip) for clip in clips], indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(table_of(clips, given.frames))
        sheet = sheet_of(free)
        sheet.resize((sheet.width * 3 // 4, sheet.height * 3 // 4)).save(
            RESULTS.with_suffix(".jpg"), quality=72
        )


if __name__ == "__main__":
    main()
