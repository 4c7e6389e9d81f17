"""The one command: photographs in, the built-in model's folder, its table and its contact sheet out.

Owns the order of the stages. One thread and one seed: a machine makes the same weights every time.
"""

from __future__ import annotations

import argparse
import logging
import random
from pathlib import Path

import torch

from app.pipelines.builtin import DEFAULTS, MODEL_FOLDER
from app.pipelines.builtin.train.clips import CropSource
from app.pipelines.builtin.train.denoiser import Denoiser
from app.pipelines.builtin.train.evaluate import evaluate
from app.pipelines.builtin.train.export import export
from app.pipelines.builtin.train.photos import HELD_OUT, TRAINING
from app.pipelines.builtin.train.transform import fit
from app.pipelines.builtin.train.vae import PICTURE_CHANNELS, wire_vae

CROPS, CROP_PX = 300, 256


def main() -> None:
    """Parse, fit, wire, export, evaluate."""
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
    source, rng = CropSource(TRAINING, options.backgrounds), random.Random(options.seed)
    transform = fit([source.crop(rng, CROP_PX) for _ in range(CROPS)], PICTURE_CHANNELS)
    export(wire_vae(transform), Denoiser(options.seed), options.model)
    evaluate(options.model, options.backgrounds, options.out, DEFAULTS.width, DEFAULTS.frames, len(HELD_OUT))


if __name__ == "__main__":
    main()
