"""The built-in model's VAE: its shape, its loss and its two stages of training (still images, then clips).

Owns everything up to a frozen `AutoencoderKLLTXVideo`. Knows nothing of the denoiser.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from app.pipelines.builtin.train.clips import MOTIONS, STILL, TO_LUMA_CHROMA, ClipSize, ClipSource, Motion
from app.pipelines.builtin.train.measure import VaeScore, score_vae
from app.pipelines.builtin.train.optim import Trainer

log = logging.getLogger(__name__)

LATENT_CHANNELS = 48
SPATIAL_PX, KEY_FRAME_EVERY = 8, 4
CONFIG = {
    "latent_channels": LATENT_CHANNELS,
    "patch_size": 2,
    "block_out_channels": (32, 64),
    "layers_per_block": (1, 0, 1),
    "down_block_types": ("LTXVideoDownBlock3D",) * 2,
    "spatio_temporal_scaling": (True, True),
    "downsample_type": ("conv", "conv"),
    "decoder_block_out_channels": (32, 64),
    "decoder_layers_per_block": (1, 1, 1),
    "decoder_spatio_temporal_scaling": (True, True),
    "decoder_inject_noise": (False,) * 3,
    "upsample_residual": (True, True),
    "upsample_factor": (1, 1),
    "encoder_causal": True,
    "decoder_causal": False,
}

KL_WEIGHT = 2e-5
PEAK_LEARNING_RATE = 3e-3


@dataclass(frozen=True, slots=True)
class ClipCycle:
    """One rise and fall of the decoder's learning rate.

    `texture_weight` is how much the amount of detail counts; `carried` the part of the batches that is
    decoded from what the denoiser hands over, instead of from encoded key frames.
    """

    steps: int
    hold_steps: int
    peak: float
    texture_weight: float
    carried: float


CLIP_CYCLES = (ClipCycle(620, 330, 2e-3, 0.4, 0.0), ClipCycle(110, 50, 8e-4, 0.6, 0.5))


def train_on_images(
    train: ClipSource, held_out: torch.Tensor, steps: int, seed: int
) -> AutoencoderKLLTXVideo:
    """A VAE of single images: most of the picture, at a tenth of a clip's cost.

    `held_out` is [n, 3, height, width] in -1..1.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = AutoencoderKLLTXVideo(**CONFIG)
    fold_single_frames(vae)
    trainer = _trainer(vae, PEAK_LEARNING_RATE, steps, 3 * steps // 10)
    _run(trainer, steps, functools.partial(_image_loss, vae, train, rng), held_out, "images")
    return trainer.average


def turn_to_clips(vae: AutoencoderKLLTXVideo, train: ClipSource, seed: int) -> None:
    """Make a VAE of images one of clips, in place: every latent frame is a key frame's image.

    The encoder is final from here on. A pan by one latent pixel a latent frame is just a shift of the first
    frame's latents, which is easy to denoise, and sharp.
    """
    see_key_frames(vae)
    inflate(vae)
    fold_single_frames(vae)
    vae.requires_grad_(False)
    set_latent_statistics(vae, train, random.Random(seed))


def load_clip_vae(folder: Path) -> AutoencoderKLLTXVideo:
    """A VAE already turned to clips, ready to be used or trained further."""
    vae = AutoencoderKLLTXVideo.from_pretrained(folder)
    fold_single_frames(vae)
    return vae.requires_grad_(False)


def train_on_clips(
    vae: AutoencoderKLLTXVideo, train: ClipSource, held_out: torch.Tensor, cycle: ClipCycle, seed: int
) -> AutoencoderKLLTXVideo:
    """Teach the decoder of a VAE turned to clips to fill in the frames between key frames."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae.decoder.requires_grad_(True)
    trainer = _trainer(vae, cycle.peak, cycle.steps, cycle.hold_steps)
    loss_of = functools.partial(_clip_loss, vae, train, rng, cycle)
    _run(trainer, cycle.steps, loss_of, held_out, "clips")
    return trainer.average


def fold_single_frames(vae: AutoencoderKLLTXVideo) -> None:
    """Convolve one frame in 2D: padding repeats that frame, so a kernel summed over time is exact."""

    def forward(conv: LTXVideoCausalConv3d, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.shape[2] != 1:
            made: torch.Tensor = type(conv).forward(conv, hidden_states)
            return made
        inner = conv.conv
        kernel, stride, padding = inner.weight.sum(2), inner.stride[1:], inner.padding[1:]
        return F.conv2d(hidden_states[:, :, 0], kernel, inner.bias, stride, padding)[:, :, None]

    for module in vae.modules():
        if isinstance(module, LTXVideoCausalConv3d):
            module.forward = functools.partial(forward, module)


@torch.no_grad()
def see_key_frames(vae: AutoencoderKLLTXVideo) -> None:
    """Make the encoder of an image VAE encode, exactly as images, frames 0, 4, 8 and so on of a clip.

    Causal kernels end at the frame they stand on, and striding keeps every second one: a kernel's sum at its
    last place in time sees the key frames alone, and gives on single images what it gave before.
    """
    for module in vae.encoder.modules():
        if isinstance(module, LTXVideoCausalConv3d):
            weight = module.conv.weight
            whole = weight.sum(2)
            weight.zero_()
            weight[:, :, -1] = whole


@torch.no_grad()
def encode_key_frames(vae: AutoencoderKLLTXVideo, clips: torch.Tensor) -> torch.Tensor:
    """Latents [b, c, key frames, height / 8, width / 8] of [b, 3, frames, height, width]."""
    frames = clips[:, :, ::KEY_FRAME_EVERY].transpose(1, 2)
    latents: torch.Tensor = vae.encode(frames.flatten(0, 1)[:, :, None]).latent_dist.mode()
    batch, count = frames.shape[:2]
    return latents.view(batch, count, *latents.shape[1:2], *latents.shape[3:]).transpose(1, 2)


@torch.no_grad()
def inflate(vae: AutoencoderKLLTXVideo) -> None:
    """Make a VAE trained on single images repeat them in time.

    An upsampler makes two frames of one and drops the first, so single images never train the weights of the
    earlier one. They get a copy of the later one's, corrected at the kernel's centre for the residual path,
    which hands the two frames different input channels. Output channels are ordered
    [c, time 2, height 2, width 2].
    """
    for block in vae.decoder.up_blocks:
        conv = block.upsamplers[0].conv.conv
        for tensor in (conv.weight, conv.bias):
            pairs = tensor.view(-1, 2, 4, *tensor.shape[1:])
            pairs[:, 0] = pairs[:, 1]
        residual_channels = conv.in_channels // 8
        for out in range(conv.out_channels):
            channel, phase = divmod(out, 8)
            if phase < 4:
                source = channel % residual_channels * 8 + phase
                conv.weight[out, source + 4, 1, 1, 1] += 1
                conv.weight[out, source, 1, 1, 1] -= 1


@torch.no_grad()
def set_latent_statistics(vae: AutoencoderKLLTXVideo, train: ClipSource, rng: random.Random) -> None:
    """Write each latent channel's mean and deviation over clips, which the pipeline normalises by."""
    size = ClipSize(9, 64, 64)
    clips = torch.stack([train.clip(rng, MOTIONS[i % len(MOTIONS)], size) for i in range(80)])
    latents = encode_key_frames(vae, clips)
    vae.latents_mean.copy_(latents.mean((0, 2, 3, 4)))
    vae.latents_std.copy_(latents.std((0, 2, 3, 4)))


def reconstruction_loss(clip: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, edges in space and time, chroma, and the means of 8-pixel blocks."""
    error = made - clip
    loss: torch.Tensor = error.abs().mean() + error.square().mean()
    for dim in (2, 3, 4):
        if error.shape[dim] > 1:
            loss = loss + 0.2 * error.diff(dim=dim).abs().mean()
    chroma = torch.einsum("ij,bjthw->bithw", TO_LUMA_CHROMA[1:], error)
    loss = loss + 0.75 * chroma.abs().mean()
    return loss + 0.5 * F.avg_pool3d(error, (1, 8, 8)).abs().mean()


def texture_loss(clip: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """How far the luma detail in blocks of 8 pixels is off: absolute error alone prefers blur to grain."""
    detail = []
    for video in (clip, made):
        grey = torch.einsum("c,bcthw->bthw", TO_LUMA_CHROMA[0], video)
        steps = grey.diff(dim=-1)[..., :-1, :].abs() + grey.diff(dim=-2)[..., :-1].abs()
        detail.append(F.avg_pool2d(steps, 8, ceil_mode=True))
    loss: torch.Tensor = (detail[0] - detail[1]).abs().mean()
    return loss


def _kl(posterior: DiagonalGaussianDistribution) -> torch.Tensor:
    mean, variance, logvar = posterior.mean, posterior.var, posterior.logvar
    divergence: torch.Tensor = 0.5 * (mean.square() + variance - 1 - logvar).mean()
    return divergence


def _image_loss(vae: AutoencoderKLLTXVideo, train: ClipSource, rng: random.Random) -> torch.Tensor:
    images = torch.stack([train.clip(rng, STILL, ClipSize(1, 64, 64)) for _ in range(16)])
    posterior = vae.encode(images).latent_dist
    made = vae.decode(posterior.sample(), return_dict=False)[0]
    return reconstruction_loss(images, made) + KL_WEIGHT * _kl(posterior)


def _clip_loss(
    vae: AutoencoderKLLTXVideo, train: ClipSource, rng: random.Random, cycle: ClipCycle
) -> torch.Tensor:
    size = ClipSize(9, 64, 64) if rng.random() < 0.8 else ClipSize(17, 48, 48)
    if cycle.carried and rng.random() < cycle.carried:
        motions = rng.choices(MOTIONS, k=4)
        clips = torch.stack([train.clip(rng, motion, size) for motion in motions])
        first = encode_key_frames(vae, clips[:, :, :1])
        made = vae.decode(carry(first, motions, 1 + size.frames // KEY_FRAME_EVERY), return_dict=False)[0]
        return reconstruction_loss(clips, made)
    clips = torch.stack([train.clip(rng, _any_motion(rng), size) for _ in range(4)])
    made = vae.decode(encode_key_frames(vae, clips), return_dict=False)[0]
    return reconstruction_loss(clips, made) + cycle.texture_weight * texture_loss(clips, made)


def carry(first: torch.Tensor, motions: Sequence[Motion], count: int) -> torch.Tensor:
    """What the denoiser makes, `count` latent frames, of the first one [b, c, 1, height, width].

    Every latent frame moves one latent pixel further; what comes into view is the edge, repeated.
    """
    height, width = first.shape[-2:]
    rows, columns = torch.arange(height), torch.arange(width)
    clips = []
    for latent, motion in zip(first[:, :, 0], motions, strict=True):
        moved = []
        for step in range(count):
            row = (rows - step * _sign(motion.y)).clamp(0, height - 1)
            column = (columns - step * _sign(motion.x)).clamp(0, width - 1)
            moved.append(latent[:, row][:, :, column])
        clips.append(torch.stack(moved, 1))
    return torch.stack(clips)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _any_motion(rng: random.Random) -> Motion:
    """Mostly the motions that the model makes; sometimes another, so that the VAE is not blind to it."""
    if rng.random() < 0.85:
        return rng.choice(MOTIONS)
    return Motion("other", rng.randint(-3, 3), rng.randint(-3, 3))


def _trainer(
    vae: AutoencoderKLLTXVideo, peak: float, steps: int, hold_steps: int
) -> Trainer[AutoencoderKLLTXVideo]:
    ends = ("encoder.conv_in", "decoder.conv_out")
    learning = ((name, p) for name, p in vae.named_parameters() if p.requires_grad)
    hidden = [p for name, p in learning if p.ndim >= 4 and not name.startswith(ends)]
    return Trainer(vae, hidden, peak=peak, steps=steps, hold_steps=hold_steps)


def _run(
    trainer: Trainer[AutoencoderKLLTXVideo],
    steps: int,
    loss_of: functools.partial[torch.Tensor],
    held_out: torch.Tensor,
    stage: str,
) -> None:
    started, total = time.monotonic(), 0.0
    every = max(1, steps // 14)
    for step in range(1, steps + 1):
        loss = loss_of()
        total += float(loss.detach())
        trainer.step(loss)
        if step % every == 0 or step == steps:
            score: VaeScore = score_vae(trainer.average, held_out)
            log.info(
                "vae %s step %d/%d %.0f s loss %.4f %s",
                stage,
                step,
                steps,
                time.monotonic() - started,
                total / every,
                score,
            )
            total = 0.0
