"""What the built-in model does with photographs it has never seen: a table, the bars, a contact sheet.

Runs the unmodified pipeline from its folder, as any caller would. Knows nothing of training.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

from app.pipelines.builtin import DEFAULTS, MODEL_FOLDER
from app.pipelines.builtin.train.clips import PANS, STILL, Motion
from app.pipelines.builtin.train.measure import (
    block_psnr_db,
    chroma_r2,
    correlation,
    grid_ratio,
    overlap,
    psnr_db,
    sharpness,
    shift_px,
)
from app.pipelines.builtin.train.photos import HELD_OUT, square

log = logging.getLogger(__name__)

UNMOVED_PROMPT = "a nice photo"
UNMOVED_PHOTOS = 4
DEFAULT_MOTION = Motion(UNMOVED_PROMPT, -2, 0)
ASKED = (STILL, *PANS, DEFAULT_MOTION)


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One clip measured. Shifts are of content, in pixels, first frame to last; nominal is what was asked.

    Seconds are of processor time, which a busy machine does not stretch.
    """

    photo: str
    prompt: str
    seconds: float
    first_frame_db: float
    psnr_db: float
    block_psnr_db: float
    grid: float
    shift_x: int
    shift_y: int
    nominal_x: int
    nominal_y: int
    correlation: float
    sharpness: float

    @property
    def miss_px(self) -> int:
        """How far the last frame is from where it should be, along the worse axis."""
        return max(abs(self.shift_x - self.nominal_x), abs(self.shift_y - self.nominal_y))


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise, what was measured, and whether it holds."""

    name: str
    measured: float
    wanted: str
    held: bool


def make_clip(
    pipe: DiffusionPipeline, image: Image.Image, prompt: str, side_px: int, frames: int
) -> torch.Tensor:
    """Frames [frames, 3, height, width] in -1..1."""
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


def measure(photo: torch.Tensor, clip: torch.Tensor, motion: Motion, name: str, seconds: float) -> ClipRow:
    """Measure one clip against its photo [3, height, width]."""
    steps = clip.shape[0] - 1
    shift_x, shift_y = shift_px(clip[0], clip[-1])
    before, after = overlap(photo, clip[-1], shift_x, shift_y)
    whole = photo.expand_as(clip)
    return ClipRow(
        photo=name,
        prompt=motion.name,
        seconds=seconds,
        first_frame_db=psnr_db(clip[0], photo),
        psnr_db=psnr_db(clip, whole),
        block_psnr_db=block_psnr_db(clip, whole),
        grid=grid_ratio(clip[-1]) / grid_ratio(photo),
        shift_x=shift_x,
        shift_y=shift_y,
        nominal_x=motion.x * steps,
        nominal_y=motion.y * steps,
        correlation=correlation(before, after),
        sharpness=sharpness(after) / sharpness(before),
    )


def bars(rows: Sequence[ClipRow], chroma: tuple[float, float], same_bytes: bool) -> list[Bar]:
    """Every promise of the model card against the rows."""
    still = [row for row in rows if row.prompt == STILL.name]
    pans = [row for row in rows if row.prompt in {motion.name for motion in PANS}]
    unmoved = [row for row in rows if row.prompt == UNMOVED_PROMPT]
    far = min(max(abs(row.shift_x), abs(row.shift_y)) for row in unmoved)

    def least(name: str, values: Sequence[float], limit: float) -> Bar:
        return Bar(name, min(values), f">= {limit:g}", min(values) >= limit)

    def most(name: str, values: Sequence[float], limit: float) -> Bar:
        return Bar(name, max(values), f"<= {limit:g}", max(values) <= limit)

    return [
        least("still: mean PSNR (dB)", [statistics.fmean(row.psnr_db for row in still)], 26),
        least("still: worst PSNR (dB)", [row.psnr_db for row in still], 22),
        least("still: worst PSNR of 16-pixel block means (dB)", [row.block_psnr_db for row in still], 28),
        least("still: chroma kept, worse axis (r2)", chroma, 0.9),
        most("still: shift of the last frame (px)", [row.miss_px for row in still], 1),
        most("still: 8-pixel grid against the photo's, worst", [row.grid for row in still], 1.1),
        most("pans: worst miss of the last frame (px)", [row.miss_px for row in pans], 4),
        least("pans: worst correlation after moving back", [row.correlation for row in pans], 0.9),
        least(
            "pans: mean sharpness against the photo", [statistics.fmean(row.sharpness for row in pans)], 0.6
        ),
        least("pans: worst sharpness against the photo", [row.sharpness for row in pans], 0.6),
        least("pans: worst PSNR of frame 0 (dB)", [row.first_frame_db for row in pans], 26),
        least("pans: mean PSNR of frame 0 (dB)", [statistics.fmean(row.first_frame_db for row in pans)], 26),
        least("no motion words: least shift (px)", [far], 16),
        most("CPU seconds a clip, median", [statistics.median(row.seconds for row in rows)], 15),
        least("same seed, same bytes (1 = yes)", [float(same_bytes)], 1),
    ]


def evaluate(model: Path, backgrounds: Path, out: Path, side_px: int, frames: int, limit: int) -> list[Bar]:
    """Run every photo and prompt; write `table.md`, `rows.json` and `sheet.png` under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    rows: list[ClipRow] = []
    lines: list[tuple[str, list[Image.Image]]] = []
    made_still, photos = [], []
    for photo in HELD_OUT[:limit]:
        image = square(photo, backgrounds, side_px)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
        tiles = [image]
        for motion in ASKED:
            if motion is DEFAULT_MOTION and len(lines) >= UNMOVED_PHOTOS:
                continue
            started = time.process_time()
            clip = make_clip(pipe, image, motion.name, side_px, frames)
            row = measure(pixels, clip, motion, photo.name, round(time.process_time() - started, 2))
            log.info("%s", asdict(row))
            rows.append(row)
            tiles += [_tile(clip[frames // 2]), _tile(clip[-1])]
            if motion is STILL:
                made_still.append(clip[-1])
                photos.append(pixels)
        lines.append((photo.name, tiles))
    again = make_clip(pipe, image, row.prompt, side_px, frames)
    verdict = bars(
        rows, chroma_r2(torch.stack(made_still), torch.stack(photos)), bool(torch.equal(again, clip))
    )
    (out / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    (out / "table.md").write_text(table(rows, verdict))
    sheet(lines).save(out / "sheet.png")
    return verdict


def table(rows: Sequence[ClipRow], verdict: Sequence[Bar]) -> str:
    """Markdown: the bars, then a line for each clip."""
    lines = ["| bar | measured | wanted | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {b.name} | {b.measured:.2f} | {b.wanted} | {'holds' if b.held else 'missed'} |" for b in verdict
    ]
    lines += [
        "",
        "| photo | prompt | first dB | shift | asked | corr. | sharpness | clip dB | blocks dB | grid | s |",
        "| --- " * 11 + "|",
    ]
    for r in rows:
        still = f"{r.psnr_db:.1f} | {r.block_psnr_db:.1f}" if r.prompt == STILL.name else "  | "
        lines.append(
            f"| {r.photo} | {r.prompt} | {r.first_frame_db:.1f} | {r.shift_x}, {r.shift_y} |"
            f" {r.nominal_x}, {r.nominal_y} | {r.correlation:.3f} | {r.sharpness:.2f} |"
            f" {still} | {r.grid:.2f} | {r.seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


def sheet(lines: Sequence[tuple[str, list[Image.Image]]], side_px: int = 160) -> Image.Image:
    """One row a photo: the photo, then the middle and the last frame of every clip."""
    heads = ["photo", *(f"{motion.name}, {part}" for motion in ASKED for part in ("middle", "last"))]
    picture = Image.new("RGB", (len(heads) * (side_px + 4), 16 + len(lines) * (side_px + 4)), "white")
    draw = ImageDraw.Draw(picture)
    for column, head in enumerate(heads):
        draw.text((column * (side_px + 4), 2), head, fill="black")
    for index, (_, tiles) in enumerate(lines):
        for column, tile in enumerate(tiles):
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
    parser.add_argument("--photos", type=int, default=len(HELD_OUT), help="how many of the held-out photos")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    verdict = evaluate(
        options.model, options.backgrounds, options.out, options.side, options.frames, options.photos
    )
    for bar in verdict:
        log.info("%s: %.2f (%s) %s", bar.name, bar.measured, bar.wanted, "holds" if bar.held else "MISSED")


if __name__ == "__main__":
    main()
