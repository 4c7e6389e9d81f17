"""The one command: photographs in, the built-in model's folder, its table and its contact sheet out.

Owns the order of the stages and their lengths. One thread and one seed: a machine makes the same weights
every time. What comes after the images may run side by side, with --only; a finished stage is not run again.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo

from app.pipelines.builtin import DEFAULTS, MODEL_FOLDER
from app.pipelines.builtin.train.clips import ClipSource
from app.pipelines.builtin.train.denoiser import Denoiser, train_denoiser
from app.pipelines.builtin.train.evaluate import evaluate
from app.pipelines.builtin.train.export import export
from app.pipelines.builtin.train.photos import HELD_OUT, TRAINING, square
from app.pipelines.builtin.train.vae import train_on_clips, train_on_images, turn_to_clips

IMAGE_STEPS = 1400
CLIP_STEPS = 1300
DENOISER_STEPS = 2200


def main() -> None:
    """Parse, train, export, evaluate."""
    parser = argparse.ArgumentParser(prog="python -m app.pipelines.builtin.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/builtin"), help="where everything is written")
    parser.add_argument(
        "--backgrounds",
        type=Path,
        default=Path("/usr/share/backgrounds"),
        help="where the Debian packages lomiri-wallpapers-* and mate-backgrounds put their photos",
    )
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="the folder to export to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("clips", "denoiser"), help="stop after this stage")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    vae, denoiser = train(options.out, options.backgrounds, options.seed, options.only)
    if options.only is None:
        export(vae, denoiser, options.model)
        evaluate(
            options.model, options.backgrounds, options.out, DEFAULTS.width, DEFAULTS.frames, len(HELD_OUT)
        )


def train(
    out: Path, backgrounds: Path, seed: int, only: str | None
) -> tuple[AutoencoderKLLTXVideo, Denoiser]:
    """Run the stages whose results are not yet under `out`; all of them if `only` is None."""
    source = ClipSource(TRAINING, backgrounds)
    photos = [np.asarray(square(photo, backgrounds, DEFAULTS.width)) for photo in HELD_OUT]
    held_out = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 127.5 - 1
    images, clips, weights = out / "vae-images", out / "vae", out / "denoiser.pt"
    if not images.exists():
        train_on_images(source, held_out, IMAGE_STEPS, seed).save_pretrained(images)
    vae = AutoencoderKLLTXVideo.from_pretrained(images)
    turn_to_clips(vae, source, seed + 1)
    denoiser = Denoiser()
    if only != "clips":
        if not weights.exists():
            made = train_denoiser(vae, source, ClipSource(HELD_OUT, backgrounds), DENOISER_STEPS, seed + 2)
            torch.save(made.state_dict(), weights)
        denoiser.load_state_dict(torch.load(weights))
    if only != "denoiser":
        if not clips.exists():
            train_on_clips(vae, source, held_out, CLIP_STEPS, seed + 3).save_pretrained(clips)
        vae = AutoencoderKLLTXVideo.from_pretrained(clips)
    return vae, denoiser


if __name__ == "__main__":
    main()
