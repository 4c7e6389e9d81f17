"""The built-in model's denoiser: its transformer and text encoder, their first weights, loss and training.

Trains on latents of a frozen VAE, prompts by way of the pipeline's own padding. Knows nothing of pixels.
"""

from __future__ import annotations

import logging
import math
import random
import time
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from app.pipelines.builtin.train.clips import MOTIONS, PAN_SPEED_PX, ClipSize, ClipSource, Motion
from app.pipelines.builtin.train.optim import Trainer
from app.pipelines.builtin.train.prompts import VOCABULARY, build_tokenizer, prompt_for
from app.pipelines.builtin.train.vae import LATENT_CHANNELS, encode_key_frames

log = logging.getLogger(__name__)

HEADS, HEAD_DIM, LAYERS, TEXT_DIM = 2, 60, 5, 64
DIM = HEADS * HEAD_DIM
PROMPT_TOKENS = 128
FRAMES, FRAMES_PER_SECOND = 17, 8
SPATIAL_PX, TEMPORAL_FRAMES = 8, 4
SHORT_LATENT_FRAMES = 3
PEAK_LEARNING_RATE = 3e-3
REVEALED_WEIGHT = 0.15  # of parts that the first frame does not show: only a guess is possible there
MOTION_WEIGHTS = (1.0, 1.0, 1.5, 1.0, 1.0)  # still, left, right (also the default), up, down


class Denoiser(nn.Module):
    """Transformer and text encoder, trained as one."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = LTXVideoTransformer3DModel(
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_DIM,
            cross_attention_dim=DIM,
            num_layers=LAYERS,
            caption_channels=TEXT_DIM,
        )
        self.text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(VOCABULARY),
                d_model=TEXT_DIM,
                d_kv=16,
                d_ff=128,
                num_layers=1,
                num_heads=4,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        )
        self.tokenizer = build_tokenizer()
        look_at_the_same_place(self.transformer)

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Velocity [b, c, frames, height, width] of `noisy`, its first frame clean. sigma: [b] in 0..1."""
        batch, _, frames, height, width = noisy.shape
        times = (1000 * sigma).view(-1, 1, 1).expand(batch, frames, height * width).clone()
        times[:, 0] = 0
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt"
        )
        packed = self.transformer(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            encoder_hidden_states=self.text_encoder(tokens.input_ids)[0],
            timestep=times.flatten(1),
            encoder_attention_mask=tokens.attention_mask.bool(),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(TEMPORAL_FRAMES / FRAMES_PER_SECOND, SPATIAL_PX, SPATIAL_PX),
            return_dict=False,
        )[0]
        velocity: torch.Tensor = packed.transpose(1, 2).reshape(noisy.shape)
        return velocity


@torch.no_grad()
def look_at_the_same_place(transformer: LTXVideoTransformer3DModel) -> None:
    """Start every attention head as a kernel over nearby places, the same in all frames.

    A constant query and key under rotary embedding score cos(frequency x distance) for each pair of channels;
    pairs cycle through time, height and width, so ones in the latter two favour the same place.
    """
    kernel = torch.zeros(DIM // 6, 3, 2)
    kernel[:, 1:, 0] = 1
    for block in transformer.transformer_blocks:
        for layer in (block.attn1.to_q, block.attn1.to_k):
            nn.init.normal_(layer.weight, std=0.5 * DIM**-0.5)
            layer.bias.copy_(kernel.flatten())
        block.attn1.norm_q.weight.fill_(1.4)
        block.scale_shift_table.mul_(0.1)
        block.scale_shift_table[2] += 0.5
        block.scale_shift_table[5] += 0.5
    transformer.proj_out.weight.mul_(0.5)
    transformer.time_embed.linear.weight.mul_(0.3)


@dataclass(frozen=True, slots=True)
class Window:
    """One batch: latents [b, c, frames, height, width], their motions, and a weight for every place."""

    latents: torch.Tensor
    motions: list[Motion]
    weight: torch.Tensor


class LatentSource:
    """Encodes moving clips as it goes, keeps the latest, and cuts windows of latents from them."""

    def __init__(
        self, vae: AutoencoderKLLTXVideo, clips: ClipSource, rng: random.Random, *, keep: int = 320
    ) -> None:
        self._vae, self._clips, self._rng, self._keep = vae, clips, rng, keep
        self._held: list[tuple[Motion, torch.Tensor]] = []
        self._mean = vae.latents_mean.view(1, -1, 1, 1, 1)
        self._std = vae.latents_std.view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def refill(self, side_px: int, count: int) -> None:
        """Encode `count` new square clips, dropping the oldest."""
        for _ in range(count):
            motion = self._rng.choices(MOTIONS, MOTION_WEIGHTS)[0]
            clip = self._clips.clip(self._rng, motion, ClipSize(FRAMES, side_px, side_px))[None]
            self._held.append((motion, self.normalised(clip)[0]))
        self._held = self._held[-self._keep :]

    @torch.no_grad()
    def normalised(self, clip: torch.Tensor) -> torch.Tensor:
        """Latents of [b, 3, frames, height, width] as the pipeline scales them."""
        normalised: torch.Tensor = (encode_key_frames(self._vae, clip) - self._mean) / self._std
        return normalised

    def windows(self, count: int, height: int, width: int) -> Window:
        """`count` windows of `height` x `width` latent pixels, each from a clip picked at random.

        One batch in ten is short, so that the shorter clips work too.
        """
        frames = SHORT_LATENT_FRAMES if self._rng.random() < 0.1 else None
        cut, motions = [], []
        fitting = [held for held in self._held if held[1].shape[2] >= height and held[1].shape[3] >= width]
        for motion, latents in self._rng.choices(fitting, k=count):
            top = self._rng.randint(0, latents.shape[2] - height)
            left = self._rng.randint(0, latents.shape[3] - width)
            cut.append(latents[:, :frames, top : top + height, left : left + width])
            motions.append(motion)
        weights = [
            revealed_weight(motion, *latents.shape[1:]) for motion, latents in zip(motions, cut, strict=True)
        ]
        return Window(torch.stack(cut), motions, torch.stack(weights))


def revealed_weight(motion: Motion, frames: int, height: int, width: int) -> torch.Tensor:
    """[1, frames, height, width]: one where the first frame shows it, less where motion reveals it."""
    weight = torch.ones(1, frames, height, width)
    for frame in range(1, frames):
        shift = math.ceil(PAN_SPEED_PX * TEMPORAL_FRAMES * frame / SPATIAL_PX)
        if motion.x > 0:
            weight[:, frame, :, :shift] = REVEALED_WEIGHT
        if motion.x < 0:
            weight[:, frame, :, max(0, width - shift) :] = REVEALED_WEIGHT
        if motion.y > 0:
            weight[:, frame, :shift] = REVEALED_WEIGHT
        if motion.y < 0:
            weight[:, frame, max(0, height - shift) :] = REVEALED_WEIGHT
    return weight


def flow_loss(denoiser: Denoiser, window: Window, sigma: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Weighted squared error of the velocity (noise - latents) on all frames but the first."""
    noise = torch.randn_like(window.latents)
    mix = sigma.view(-1, 1, 1, 1, 1)
    noisy = window.latents * (1 - mix) + noise * mix
    noisy[:, :, :1] = window.latents[:, :, :1]
    prompts = [prompt_for(motion, rng) for motion in window.motions]
    error = (denoiser(noisy, sigma, prompts) - (noise - window.latents))[:, :, 1:]
    weight = window.weight[:, :, 1:]
    loss: torch.Tensor = (error.square() * weight).mean() / weight.mean()
    return loss


def noise_levels(count: int) -> torch.Tensor:
    """Levels biased to high noise, where the motion is decided; a quarter of them start from noise alone."""
    sigma = torch.sigmoid(torch.randn(count) * 1.2 + 1.0)
    return torch.where(torch.rand(count) < 0.25, torch.ones(count), sigma)


def window_shape(rng: random.Random, large: bool) -> tuple[int, int, int]:
    """(count, height, width) in latent pixels: strips and squares; larger squares towards the end."""
    if large:
        return rng.choice([(2, 20, 20), (2, 24, 24), (1, 32, 32)])
    return rng.choice([(5, 6, 16), (5, 16, 6), (5, 10, 10), (3, 14, 14)])


@torch.no_grad()
def score(denoiser: Denoiser, latents: torch.Tensor, generator: torch.Generator) -> dict[str, float]:
    """Mean squared error by motion of a one-step guess from pure noise, where the first frame shows it.

    latents: [motions, b, c, frames, height, width], in the order of MOTIONS. Unit variance: a blind guess: 1.
    """
    scores = {}
    for motion, clean in zip(MOTIONS, latents, strict=True):
        noise = torch.randn(clean.shape, generator=generator)
        noise[:, :, :1] = clean[:, :, :1]
        guess = noise - denoiser(noise, torch.ones(len(clean)), [motion.name] * len(clean))
        shown = revealed_weight(motion, *clean.shape[2:]) == 1
        error = ((guess - clean).square() * shown)[:, :, 1:]
        scores[motion.name] = float(error.sum() / shown[:, 1:].expand_as(error).sum())
    return scores


def train_denoiser(
    vae: AutoencoderKLLTXVideo, train: ClipSource, held_out: ClipSource, steps: int, seed: int
) -> Denoiser:
    """Train transformer and text encoder together on the latents of `vae`; return the averaged weights."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    denoiser = Denoiser()
    blocks = denoiser.transformer.transformer_blocks
    hidden = [p for name, p in blocks.named_parameters() if p.ndim == 2 and "table" not in name]
    trainer = Trainer(denoiser, hidden, peak=PEAK_LEARNING_RATE, steps=steps)
    source = LatentSource(vae, train, rng)
    source.refill(160, 24)
    held = _held_out_latents(vae, held_out, seed)
    started, total, every = time.monotonic(), 0.0, max(1, steps // 20)
    first_large = int(0.85 * steps)
    for step in range(1, steps + 1):
        large = step > first_large
        if step == first_large + 1:
            source.refill(256, 12)
        if rng.random() < (0.2 if large else 0.3):
            source.refill(256 if large else 160, 1)
        window = source.windows(*window_shape(rng, large and step % 2 == 0))
        loss = flow_loss(denoiser, window, noise_levels(len(window.motions)), rng)
        total += float(loss.detach())
        trainer.step(loss)
        if step % every == 0 or step == steps:
            scores = score(trainer.average, held, torch.Generator().manual_seed(seed))
            log.info(
                "denoiser step %d/%d %.0f s loss %.4f error %s",
                step,
                steps,
                time.monotonic() - started,
                total / every,
                {name: round(value, 3) for name, value in scores.items()},
            )
            total = 0.0
    return trainer.average


def _held_out_latents(vae: AutoencoderKLLTXVideo, held_out: ClipSource, seed: int) -> torch.Tensor:
    rng = random.Random(seed + 2)
    source = LatentSource(vae, held_out, rng)
    size = ClipSize(FRAMES, 128, 128)
    clips = [torch.stack([held_out.clip(rng, motion, size) for _ in range(4)]) for motion in MOTIONS]
    return torch.stack([source.normalised(batch) for batch in clips])
