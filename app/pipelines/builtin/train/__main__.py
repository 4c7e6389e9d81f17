"""The one command: photographs in, the built-in model's folder, its table and its contact sheet out.

Owns the order of the stages and their lengths. One thread and one seed: a machine makes the same weights
every time. A stage whose result is there already is not run again.
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
from app.pipelines.builtin.train.denoiser import Denoiser
from app.pipelines.builtin.train.evaluate import evaluate
from app.pipelines.builtin.train.export import export
from app.pipelines.builtin.train.photos import HELD_OUT, TRAINING, square
from app.pipelines.builtin.train.vae import (
    CLIP_CYCLES,
    load_clip_vae,
    train_on_clips,
    train_on_images,
    turn_to_clips,
)

IMAGE_STEPS = 1400


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
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    vae = train_vae(options.out, options.backgrounds, options.seed)
    export(vae, Denoiser(options.seed), options.model)
    evaluate(options.model, options.backgrounds, options.out, DEFAULTS.width, DEFAULTS.frames, len(HELD_OUT))


def train_vae(out: Path, backgrounds: Path, seed: int) -> AutoencoderKLLTXVideo:
    """Run the stages whose results are not yet under `out`; return the last one's."""
    source = ClipSource(TRAINING, backgrounds)
    photos = [np.asarray(square(photo, backgrounds, DEFAULTS.width)) for photo in HELD_OUT]
    held_out = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 127.5 - 1
    images = out / "vae-images"
    if not images.exists():
        train_on_images(source, held_out, IMAGE_STEPS, seed).save_pretrained(images)
    vae = AutoencoderKLLTXVideo.from_pretrained(images)
    turn_to_clips(vae, source, seed + 1)
    for index, cycle in enumerate(CLIP_CYCLES):
        folder = out / f"vae-clips-{index}"
        if not folder.exists():
            train_on_clips(vae, source, held_out, cycle, seed + 3 + index).save_pretrained(folder)
        vae = load_clip_vae(folder)
    return vae


if __name__ == "__main__":
    main()
