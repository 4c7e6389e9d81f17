"""Makes the built-in model from photographs: its folder, its evaluation table and its contact sheet.

Owns the order of the stages. Uses one thread and one seed, so that a machine always makes the same weights.
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
    """Fit the transform, wire the networks, export the pipeline, evaluate it."""
    parser = argparse.ArgumentParser(prog="python -m app.pipelines.builtin.train", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("out/builtin"), help="folder for the table and the contact sheet"
    )
    parser.add_argument(
        "--backgrounds",
        type=Path,
        default=Path("/usr/share/backgrounds"),
        help="folder with the photos of the Debian packages lomiri-wallpapers-* and mate-backgrounds",
    )
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder to export the pipeline to")
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
