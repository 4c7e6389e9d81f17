"""Shows what exactness gives: pans over a photo, decoded in several ways by the built-in model's autoencoder.

    python tests/bench/consistency.py [--photo FILE ...] [--frames 65] [--out FOLDER]

A window of 256x256 pixels moves over each photo by two pixels a frame, in four directions and once not at
all. The clip is encoded in one call, and its motion is written into the latents as the model's denoiser does.
The latents are decoded in one call, in chunks of 4, 2 and 1, and by diffusers' framewise tiling.

Three values are measured for each way: the PSNR of its 8-bit frames against those of the one call; the
difference between its change from frame to frame and that of the one call, in grey levels, at the borders of
temporal tiles; and flicker, the mean change from frame to frame of the clip without motion. Writes
`consistency.json`, `consistency.md` and `consistency.png`, which shows one row of pixels over time for each
way, and the differences.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from adaptive import stream_decode
from adaptive.stream import decode_whole
from app.pipelines.builtin.train.clips import PANS
from app.pipelines.builtin.train.vae import PICTURE_CHANNELS

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "app" / "pipelines" / "builtin" / "model" / "vae"
SIDE_PX, SPEED_PX = 256, 2
MOTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0), "still": (0, 0)}
EXACT = "one call"
FRAMEWISE = "diffusers framewise"


def clip_of(photo: Tensor, motion: str, frames: int) -> Tensor:
    """`[1, 3, F, 256, 256]` in [-1, 1]: the window travels over the middle of the photo `[3, H, W]`."""
    down, right = MOTIONS[motion]
    travel = SPEED_PX * (frames - 1)
    top = (photo.shape[1] - SIDE_PX - abs(down) * travel) // 2 + travel * (down < 0)
    left = (photo.shape[2] - SIDE_PX - abs(right) * travel) // 2 + travel * (right < 0)
    windows = [
        photo[:, top + down * moved :, left + right * moved :][:, :SIDE_PX, :SIDE_PX]
        for moved in range(0, travel + 1, SPEED_PX)
    ]
    return torch.stack(windows, 1)[None]


def photo_of(path: Path, frames: int) -> Tensor:
    """`[3, H, W]` in [-1, 1], its short side just long enough for the window to travel."""
    picture = Image.open(path).convert("RGB")
    scale = (SIDE_PX + SPEED_PX * (frames - 1)) / min(picture.size)
    picture = picture.resize([round(scale * side) for side in picture.size], Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1) / 127.5 - 1


def latents_of(vae: Any, source: Tensor, motion: str) -> Tensor:
    """Of a clip that moves so; the encoder sees key frames alone, what moves is for the denoiser to say."""
    latents: Tensor = vae.encode(source).latent_dist.mode()
    for index, pan in enumerate(PANS):
        if pan.name == f"pan {motion}":
            latents[:, PICTURE_CHANNELS + index, 1:] = 1
    return latents


def decodes(vae: Any, latents: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each way's video `[1, 3, F, H, W]`; ours first, the one call first of all."""
    yield EXACT, decode_whole(vae, latents)
    for size in (4, 2, 1):
        parts = list(stream_decode(vae, latents, frames_per_chunk=size))
        yield f"Framefit, chunk {size}", torch.cat(parts, 2)
    vae.use_framewise_decoding = True
    try:
        yield FRAMEWISE, vae.decode(latents).sample
    finally:
        vae.use_framewise_decoding = False


def grey_levels(video: Tensor) -> Tensor:
    """8-bit values, as numbers with a fraction's room."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round()


def psnr_db(video: Tensor, reference: Tensor) -> float:
    """Of 8-bit frames; infinite where all are equal."""
    error = (video - reference).square().mean()
    return (20 * torch.tensor(255.0).log10() - 10 * error.log10()).item()


def borders(vae: Any, frames: int) -> Tensor:
    """Which of the frame steps lie in the cross-fade between two tiles of time, `[F-1]`."""
    stride, size = vae.tile_sample_stride_num_frames, vae.tile_sample_min_num_frames
    later = torch.arange(1, frames)
    return (later > stride) & ((later - 1) % stride < size - stride)


def measure(vae: Any, photo: Tensor, frames: int) -> Iterator[dict[str, Any]]:
    """One row a motion and way."""
    for motion in MOTIONS:
        source = clip_of(photo, motion, frames)
        latents = latents_of(vae, source, motion)
        reference = None
        for way, video in decodes(vae, latents):
            levels = grey_levels(video)
            reference = levels if reference is None else reference
            steps = levels.diff(dim=2)
            error = (steps - reference.diff(dim=2)).abs().mean(dim=(0, 1, 3, 4))
            yield {
                "motion": motion,
                "way": way,
                "psnr_to_one_call_db": psnr_db(levels, reference),
                "worst_frame_db": min(
                    psnr_db(levels[:, :, t], reference[:, :, t]) for t in range(levels.shape[2])
                ),
                "psnr_to_source_db": psnr_db(levels, grey_levels(source)),
                "step_errors": error.tolist(),
                "flicker": steps.abs().mean().item() if motion == "still" else None,
            }


def summary(rows: list[dict[str, Any]], meeting: Tensor) -> list[dict[str, Any]]:
    """One row a way, over all motions."""
    table = []
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        errors = torch.tensor([row["step_errors"] for row in own if row["motion"] != "still"])
        table.append(
            {
                "way": way,
                "worst_frame_db": min(row["worst_frame_db"] for row in own),
                "psnr_to_source_db": sum(row["psnr_to_source_db"] for row in own) / len(own),
                "step_error_where_tiles_meet": errors[:, meeting].mean().item(),
                "worst_step_error": errors.max().item(),
                "flicker": max(row["flicker"] for row in own if row["flicker"] is not None),
            }
        )
    return table


def as_markdown(table: list[dict[str, Any]], photos: int, frames: int) -> str:
    """The table, with how it was made."""
    head = (
        f"Measured by `tests/bench/consistency.py`: {photos} photo(s), five clips each of {frames} frames of "
        f"{SIDE_PX}x{SIDE_PX}, the built-in model's autoencoder, float32, CPU, "
        f"diffusers {diffusers.__version__}."
        "\n\n| way | worst frame against one call, dB | whole clips against the source, dB "
        "| change between frames where tiles meet, off by (0-255) | at worst | flicker of a still clip |\n"
        "|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {row['way']} | {said(row['worst_frame_db'])} | {row['psnr_to_source_db']:.1f} "
        f"| {row['step_error_where_tiles_meet']:.2f} | {row['worst_step_error']:.2f} "
        f"| {row['flicker']:.3f} |\n"
        for row in table
    )


def said(decibels: float) -> str:
    """Infinity is a word."""
    return "identical" if decibels == float("inf") else f"{decibels:.1f}"


def picture(vae: Any, photo: Tensor, frames: int) -> Image.Image:
    """The middle row of pixels of the pan to the right over time (downwards), each way; differences."""
    latents = latents_of(vae, clip_of(photo, "right", frames), "right")
    videos = dict(decodes(vae, latents))
    rows = {way: grey_levels(video)[0, :, :, SIDE_PX // 2] for way, video in videos.items()}
    ours, theirs = rows["Framefit, chunk 1"], rows[FRAMEWISE]
    panels = {
        "one call": rows[EXACT],
        "Framefit, one latent frame at a time": ours,
        "diffusers framewise": theirs,
        "Framefit less one call, x 8": 128 + 8 * (ours - rows[EXACT]),
        "framewise less one call, x 8": 128 + 8 * (theirs - rows[EXACT]),
    }
    tall, gap, head = 4 * frames, 8, 18
    width = len(panels) * (SIDE_PX + gap) - gap
    sheet = Image.new("RGB", (width, tall + head), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, levels) in enumerate(panels.items()):
        left = index * (SIDE_PX + gap)
        pixels = levels.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
        strip = Image.fromarray(pixels).resize((SIDE_PX, tall), Image.Resampling.NEAREST)
        sheet.paste(strip, (left, head))
        draw.text((left + 2, 3), name, "black")
    return sheet


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photo", type=Path, nargs="*", default=[ROOT / "app" / "assets" / "demo.jpg"])
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    vae = diffusers.AutoencoderKLLTXVideo.from_pretrained(MODEL, torch_dtype=torch.float32).eval()
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for path in options.photo:
            photo = photo_of(path, options.frames)
            rows += [{"photo": path.name, **row} for row in measure(vae, photo, options.frames)]
        sheet = picture(vae, photo_of(options.photo[0], options.frames), options.frames)
    table = summary(rows, borders(vae, options.frames))
    options.out.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(options.out / "consistency.png", optimize=True)
    for row in rows:
        for name in ("psnr_to_one_call_db", "worst_frame_db"):
            row[name] = None if row[name] == float("inf") else row[name]  # JSON knows no infinity
    (options.out / "consistency.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = as_markdown(table, len(options.photo), options.frames)
    (options.out / "consistency.md").write_text(text)
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
