"""Evaluates the built-in model on held-out photographs: a table, the quality bars, a contact sheet.

Runs the unmodified pipeline from its folder, as any caller would. Must not know how the weights are made.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

from app.pipelines.builtin import DEFAULTS, MODEL_FOLDER
from app.pipelines.builtin.train.bars import (
    ASKED,
    UNMOVED_PHOTOS,
    Bar,
    ClipRow,
    bars,
    measure,
    table,
)
from app.pipelines.builtin.train.clips import PANS, STILL, Motion
from app.pipelines.builtin.train.measure import chroma_r2
from app.pipelines.builtin.train.photos import HELD_OUT, Photo, square

log = logging.getLogger(__name__)


def make_clip(
    pipe: DiffusionPipeline, image: Image.Image, prompt: str, side_px: int, frames: int
) -> torch.Tensor:
    """Run the pipeline on one square image; returns frames [frames, 3, height, width] in -1..1."""
    video = pipe(
        image=image,
        prompt=prompt,
        height=side_px,
        width=side_px,
        num_frames=frames,
        frame_rate=DEFAULTS.fps,
        num_inference_steps=DEFAULTS.steps,
        guidance_scale=DEFAULTS.guidance_scale,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).frames[0]
    clip: torch.Tensor = video.float() * 2 - 1
    return clip


@dataclass(frozen=True, slots=True)
class Task:
    """One photo and the motions to run it with, one prompt each."""

    model: Path
    backgrounds: Path
    photo: Photo
    side_px: int
    frames: int
    motions: tuple[Motion, ...]


@dataclass(frozen=True, slots=True)
class PhotoResult:
    """The results of one photo: its measurements, its tiles of the sheet, and the last frame of `still`."""

    name: str
    rows: list[ClipRow]
    tiles: list[Image.Image]
    photo: torch.Tensor
    still: torch.Tensor


@functools.lru_cache(maxsize=1)
def load_pipeline(model: Path) -> DiffusionPipeline:
    """Load the pipeline in `model`; sets torch to one thread."""
    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_photo(task: Task) -> PhotoResult:
    """Make and measure every clip of one photo."""
    pipe = load_pipeline(task.model)
    image = square(task.photo, task.backgrounds, task.side_px)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
    rows, tiles, last = [], [image], {}
    for motion in task.motions:
        started = time.process_time()
        clip = make_clip(pipe, image, motion.name, task.side_px, task.frames)
        rows.append(measure(pixels, clip, motion, task.photo.name, round(time.process_time() - started, 2)))
        tiles += [_tile(clip[task.frames // 2]), _tile(clip[-1])]
        last[motion.name] = clip[-1]
    return PhotoResult(task.photo.name, rows, tiles, pixels, last[STILL.name])


def evaluate(
    model: Path, backgrounds: Path, out: Path, side_px: int, frames: int, limit: int, jobs: int = 1
) -> list[Bar]:
    """Run `limit` photos with their prompts in `jobs` processes; returns the bars.

    Writes `table.md`, `rows.json` and `sheet.png` to `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    tasks = [
        Task(model, backgrounds, photo, side_px, frames, ASKED if index < UNMOVED_PHOTOS else ASKED[:-1])
        for index, photo in enumerate(HELD_OUT[:limit])
    ]
    results = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for result in pool.map(run_photo, tasks):
            log.info("%s", [asdict(row) for row in result.rows])
            results.append(result)
    rows = [row for result in results for row in result.rows]
    chroma = chroma_r2(torch.stack([r.still for r in results]), torch.stack([r.photo for r in results]))
    verdict = bars(rows, chroma, same_bytes(tasks[0]))
    (out / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    (out / "table.md").write_text(table(rows, verdict))
    sheet(results).save(out / "sheet.png")
    return verdict


def same_bytes(task: Task) -> bool:
    """Whether two runs with the same photo, prompt and seed give the same frames."""
    image = square(task.photo, task.backgrounds, task.side_px)
    clips = [
        make_clip(load_pipeline(task.model), image, PANS[0].name, task.side_px, task.frames) for _ in range(2)
    ]
    return bool(torch.equal(*clips))


def sheet(results: Sequence[PhotoResult], side_px: int = 160) -> Image.Image:
    """A contact sheet with one row a photo: the photo, then the middle and last frame of every clip."""
    heads = ["photo", *(f"{motion.name}, {part}" for motion in ASKED for part in ("middle", "last"))]
    picture = Image.new("RGB", (len(heads) * (side_px + 4), 16 + len(results) * (side_px + 4)), "white")
    draw = ImageDraw.Draw(picture)
    for column, head in enumerate(heads):
        draw.text((column * (side_px + 4), 2), head, fill="black")
    for index, result in enumerate(results):
        for column, tile in enumerate(result.tiles):
            small = tile.resize((side_px, side_px), Image.Resampling.LANCZOS)
            picture.paste(small, (column * (side_px + 4), 16 + index * (side_px + 4)))
    return picture


def _tile(frame: torch.Tensor) -> Image.Image:
    return Image.fromarray(((frame.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy())


def main() -> None:
    """Measure the shipped model, or the one in --model."""
    parser = argparse.ArgumentParser(
        prog="python -m app.pipelines.builtin.train.evaluate", description=__doc__
    )
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--out", type=Path, default=Path("out/builtin-evaluation"))
    parser.add_argument("--backgrounds", type=Path, default=Path("/usr/share/backgrounds"))
    parser.add_argument("--side", type=int, default=DEFAULTS.width, help="pixels")
    parser.add_argument("--frames", type=int, default=DEFAULTS.frames)
    parser.add_argument("--photos", type=int, default=len(HELD_OUT), help="number of held-out photos")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    verdict = evaluate(
        options.model,
        options.backgrounds,
        options.out,
        options.side,
        options.frames,
        options.photos,
        options.jobs,
    )
    for bar in verdict:
        log.info("%s: %.2f (%s) %s", bar.name, bar.measured, bar.wanted, "holds" if bar.held else "MISSED")


if __name__ == "__main__":
    main()
