"""The built-in model's denoiser: transformer, text encoder and tokenizer, called as the pipeline calls them.

Owns their sizes. `wiring` writes the weights. Must not know pixels.
"""

from __future__ import annotations

import torch
from diffusers import LTXVideoTransformer3DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from app.pipelines.builtin.train.clips import MOTIONS
from app.pipelines.builtin.train.prompts import (
    DEFAULT_MOTION,
    END,
    PROMPT_TOKENS,
    VOCABULARY,
    build_tokenizer,
    ids_for,
)
from app.pipelines.builtin.train.transform import BLOCK_PX
from app.pipelines.builtin.train.vae import KEY_FRAME_EVERY, LATENT_CHANNELS
from app.pipelines.builtin.train.wiring import wire

HEADS, HEAD_DIM, LAYERS, TEXT_DIM = 2, 60, 5, 64
FRAMES_PER_SECOND = 8


class Denoiser(nn.Module):
    """Transformer, text encoder and tokenizer with their weights; `seed` draws the random ones."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.transformer = LTXVideoTransformer3DModel(
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_DIM,
            cross_attention_dim=HEADS * HEAD_DIM,
            num_layers=LAYERS,
            caption_channels=TEXT_DIM,
        )
        config = T5Config(
            vocab_size=len(VOCABULARY),
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=1,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
        self.text_encoder = T5EncoderModel(config)
        self.tokenizer = build_tokenizer()
        words = [(motion, ids_for(motion)) for motion in MOTIONS]
        default = next(motion for motion in MOTIONS if motion.name == DEFAULT_MOTION)
        end = (default, VOCABULARY.index(END))
        wire(self.transformer, self.text_encoder, words, end, KEY_FRAME_EVERY / FRAMES_PER_SECOND, BLOCK_PX)

    @torch.no_grad()
    def forward(self, noisy: torch.Tensor, sigma: float, prompts: list[str]) -> torch.Tensor:
        """Predict the velocity (noise - latents) of `noisy` [b, c, frames, height, width].

        The first frame must be clean; `sigma` in 0..1 is the noise level of the others.
        """
        batch, _, frames, height, width = noisy.shape
        times = torch.full((batch, frames, height * width), 1000 * sigma)
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
            rope_interpolation_scale=(KEY_FRAME_EVERY / FRAMES_PER_SECOND, BLOCK_PX, BLOCK_PX),
            return_dict=False,
        )[0]
        velocity: torch.Tensor = packed.transpose(1, 2).reshape(noisy.shape)
        return velocity
