"""The denoiser's closed-form weights: attention that carries the first frame's latents along the motion.

A pan by one latent pixel a latent frame is a shift, which attention can do exactly: a frame attends to an
earlier frame, as many latent pixels away as frames, and copies the picture that it carries. The first such
block attends one frame back, the next two, then four, then eight. So four blocks carry the first frame to the
fifteenth after it. A frame that already carries the picture attends to itself.

Owns the layout of the hidden state and the weights. Must not know training data. The two models have type
`Any` here, because their classes declare every submodule as possibly a tensor.

Hidden state (120 channels): the noisy latent, a flag | the carried picture, its flag | one-hot motion |
constants | clean. The constants are far larger than the rest, so that RMSNorm does not normalise the
picture's contrast. The flag is carried with the picture, and so marks the frames that carry it. The latent's
last channels, which tell the decoder the motion, are not carried: they are written from the motion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from app.pipelines.builtin.train.clips import MOTIONS, PANS, STILL, Motion

CONSTANT_COUNT, CONSTANT = 4, 200.0
CLASS_SIZE, TEXT_GAIN = 10.0, 6.0
BY_RANK = (*PANS, STILL)
FLAG, KEEP_GAIN = 2.0, 20.0
SELF_GAIN = 25.0
# Fitted by least squares: in space, the score falls with distance, by 14 for the first latent pixel; in time,
# it falls at once.
SPACE_GAINS = (123.0, 302.0, 655.0, 963.0, 23.0, 181.0, 87.0, 66.0, 65.0, 82.0)
TIME_GAINS = (2.0, 4.0, 8.0, 11.0, 16.0, 21.0, 27.0, 25.0, 26.0, 3.0)
CLEAN_SIGNAL = 8.0
ROPE_THETA, ROPE_FRAMES, ROPE_SIDE_PX = 10000.0, 20, 2048
SIGMA_FLOOR = 0.12


class Layout:
    """The channels of the hidden state. A latent has `picture` channels, then one for each pan.

    Raises ValueError if `width` channels are too few.
    """

    def __init__(self, picture: int, width: int) -> None:
        self.picture = picture
        self.latent = slice(0, picture + len(PANS))
        self.flag = self.latent.stop
        self.carried = slice(self.flag + 1, self.flag + 2 + picture)
        self.motion = slice(self.carried.stop, self.carried.stop + len(MOTIONS))
        self.constants = slice(self.motion.stop, self.motion.stop + CONSTANT_COUNT)
        self.clean = self.constants.stop
        self.width = width
        if self.clean >= width:
            raise ValueError(f"the hidden state needs {self.clean + 1} channels; it has {width}")
        self.rms = math.sqrt((CONSTANT_COUNT * CONSTANT**2 + CLASS_SIZE**2 + 2 * picture) / width)
        self.to_carry = [*range(picture), self.flag]


@torch.no_grad()
def wire(
    transformer: Any,
    text_encoder: Any,
    words: Sequence[tuple[Motion, Sequence[int]]],
    default: tuple[Motion, int],
    seconds_per_latent_frame: float,
    latent_pixel_px: int,
) -> None:
    """Write the weights of both models in place. Motions are one latent pixel a latent frame.

    `words`: for each motion, the token ids of its words. `default`: the motion of a prompt without such
    words, and the id of the token that ends every prompt.
    """
    layout = Layout(transformer.config.in_channels - len(PANS), transformer.proj_in.out_features)
    _wire_words(text_encoder, words, default[1])
    _wire_ends(transformer, layout)
    _wire_time(transformer, layout)
    _wire_captions(transformer, layout, MOTIONS.index(default[0]))
    frequencies = _rope_frequencies(layout.width, seconds_per_latent_frame, latent_pixel_px)
    for index, block in enumerate(transformer.transformer_blocks):
        block.ff.net[2].weight.mul_(0)
        block.ff.net[2].bias.zero_()
        if index == 0:
            _silence(block.attn1)
        else:
            _silence(block.attn2)
            _wire_hop(block.attn1, layout, frequencies, 2 ** (index - 1))


def _wire_words(text_encoder: Any, words: Sequence[tuple[Motion, Sequence[int]]], end_id: int) -> None:
    """Make a word's embedding the one-hot code of its motion; attention and feed-forward contribute zero."""
    table = text_encoder.get_input_embeddings().weight
    nothing, end = len(MOTIONS), len(MOTIONS) + 1
    table.mul_(0.02)
    table[:, nothing] += 1
    table[end_id] = 0
    table[end_id, end] = 1
    for motion, ids in words:
        for token in ids:
            table[token] = 0
            table[token, MOTIONS.index(motion)] = 1
    for block in text_encoder.encoder.block:
        block.layer[0].SelfAttention.o.weight.zero_()
        block.layer[1].DenseReluDense.wo.weight.zero_()


def _wire_ends(transformer: Any, layout: Layout) -> None:
    """Write the input and output projections.

    The input is the latent and constants. The output is noisy minus carried: the velocity, once scaled by
    1 / sigma.

    In the channels of the pans, the output is noisy minus the motion; `CLASS_SIZE` there is 1 to the decoder.
    """
    channels, picture = layout.latent.stop, layout.picture
    transformer.proj_in.weight.zero_()
    transformer.proj_in.weight[layout.latent] = torch.eye(channels)
    transformer.proj_in.bias.zero_()
    transformer.proj_in.bias[layout.flag] = FLAG
    signs = torch.tensor([1.0, -1.0]).repeat(CONSTANT_COUNT // 2)
    transformer.proj_in.bias[layout.constants] = CONSTANT * signs
    out = transformer.proj_out
    out.weight.zero_()
    out.weight[:, layout.latent] = layout.rms * torch.eye(channels)
    carried = slice(layout.carried.start, layout.carried.start + picture)
    out.weight[:picture, carried] = -layout.rms * torch.eye(picture)
    for index, pan in enumerate(PANS):
        out.weight[picture + index, layout.motion.start + MOTIONS.index(pan)] = -layout.rms
    out.bias.zero_()
    transformer.scale_shift_table.zero_()


def _wire_time(transformer: Any, layout: Layout) -> None:
    """Scale the output by 1 / sigma, and distinguish the clean first frame (time 0) from the noisy ones.

    The embedder's last layer is fitted by ridge regression on its own random features of time. Its output is
    both scale and shift of the last norm; the shift cancels in the difference of noisy and carried or motion.
    """
    embed, width = transformer.time_embed, layout.width
    embedder = embed.emb.timestep_embedder
    times = torch.cat([torch.zeros(60), torch.arange(40.0, 1001.0, 4.0)])
    slow = torch.arange(256) % 128 >= 48
    embedder.linear_1.weight.normal_(std=1.0).mul_(slow)
    embedder.linear_1.bias.normal_(std=1.0)
    features = embedder.act(embedder.linear_1(embed.emb.time_proj(times)))
    features = torch.cat([features, torch.ones(len(times), 1)], 1).double()
    sigma = (times / 1000).clamp(min=SIGMA_FLOOR)
    clean = (times == 0).double()
    targets = torch.zeros(len(times), width, dtype=torch.float64)
    targets[:, : layout.motion.stop] = ((1 / sigma - 1) * (1 - clean))[:, None]
    targets[:, layout.clean] = CLEAN_SIGNAL * (2 * clean - 1)
    # The error counts relative to 1 / sigma; time 0 must be distinct from all other times.
    weights = torch.where(times == 0, 1.0, sigma).double()[:, None]
    features, targets = weights * features, weights * targets
    ridge = 1e-5 * torch.eye(features.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(features.T @ features + ridge, features.T @ targets).float()
    embedder.linear_2.weight.copy_(solved[:-1].T)
    embedder.linear_2.bias.copy_(solved[-1])
    _wire_modulation(transformer, layout)


def _wire_modulation(transformer: Any, layout: Layout) -> None:
    """Let attention read clean tokens' latents and noisy ones' carried pictures, and write to noisy ones.

    The six modulations of a block are shift, scale and gate of attention, then those of the feed-forward
    layer.
    """
    linear = transformer.time_embed.linear
    linear.weight.zero_()
    linear.bias.zero_()
    modulation = linear.weight.view(6, layout.width, layout.width)
    modulation[1, layout.to_carry, layout.clean] = 1 / CLEAN_SIGNAL
    modulation[2, :, layout.clean] = -1 / CLEAN_SIGNAL
    for block in transformer.transformer_blocks:
        block.scale_shift_table.zero_()
        block.scale_shift_table[1, layout.to_carry] = -1
        block.scale_shift_table[2] = 1
        block.scale_shift_table[5] = 1


def _wire_captions(transformer: Any, layout: Layout, default: int) -> None:
    """Make the first block's text attention write the motion.

    A motion word scores above the end token, and the end token above other words. Of several motions the
    first in `BY_RANK` wins: the later its rank, the more entries of its key lower its score.
    """
    nothing, end, size = len(MOTIONS), len(MOTIONS) + 1, len(MOTIONS) + 2
    projection = transformer.caption_projection
    for layer in (projection.linear_1, projection.linear_2):
        layer.weight.mul_(0.02)
        layer.bias.zero_()
    projection.linear_1.weight[:size] = 0
    projection.linear_1.weight[:size, :size] = torch.eye(size)
    projection.linear_2.weight[:size] = 0
    projection.linear_2.weight[:size, :size] = torch.eye(size)
    attention = transformer.transformer_blocks[0].attn2
    attention.to_q.weight.zero_()
    attention.to_q.bias.fill_(1.0)
    attention.to_k.weight.zero_()
    attention.to_k.bias.zero_()
    attention.norm_q.weight.fill_(TEXT_GAIN)
    by_head = attention.to_k.weight.view(attention.heads, -1, attention.to_k.in_features)
    half = by_head.shape[1] // 2
    for rank, motion in enumerate(BY_RANK):
        by_head[:, :, MOTIONS.index(motion)] = 1.0
        by_head[:, : rank * half // len(BY_RANK), MOTIONS.index(motion)] = -1.0
    by_head[:, :half, end] = -1.0
    by_head[:, half:, end] = 1.0
    by_head[:, :, nothing] = -1.0
    attention.to_v.weight.zero_()
    attention.to_v.bias.zero_()
    for index in range(len(MOTIONS)):
        attention.to_v.weight[index, index] = 1.0
    attention.to_v.weight[default, end] = 1.0
    strength = math.sqrt(text_width(projection))
    out = attention.to_out[0]
    out.weight.zero_()
    out.bias.zero_()
    for index in range(len(MOTIONS)):
        out.weight[layout.motion.start + index, index] = CLASS_SIZE / strength


def text_width(projection: Any) -> int:
    """Channels of a caption embedding. The text encoder's last norm scales a one-hot embedding to the root
    of it.
    """
    width: int = projection.linear_1.in_features
    return width


def _silence(attention: Any) -> None:
    attention.to_out[0].weight.zero_()
    attention.to_out[0].bias.zero_()


def _rope_frequencies(width: int, seconds_per_latent_frame: float, latent_pixel_px: int) -> torch.Tensor:
    """Radians a latent frame, row and column for each of `width` / 6 rotary frequencies, as [frequencies, 3].

    The transformer rotates by frequency * pi / 2 * (2 position / base - 1).
    """
    powers = ROPE_THETA ** torch.linspace(0, 1, width // 6)
    steps = torch.tensor([seconds_per_latent_frame / ROPE_FRAMES, *[latent_pixel_px / ROPE_SIDE_PX] * 2])
    return powers[:, None] * math.pi * steps


def _wire_hop(attention: Any, layout: Layout, frequencies: torch.Tensor, frames: int) -> None:
    """Make head 0 copy the picture that the frame `frames` earlier carries, and head 1 remove a token's own.

    With a constant key under rotary embedding and a query rotated by frequency * step, the score is the sum
    of gain * cos(frequency * (distance - step)). Head 0 has the low frequencies: its score falls smoothly, so
    that a step outside the picture finds the nearest edge. Head 1 has the high frequencies and attends to its
    own token; so does head 0 where the flag is carried.
    """
    low = len(frequencies) // 2
    gains = torch.full((len(frequencies), 3), SELF_GAIN)
    gains[:low] = torch.tensor([TIME_GAINS, SPACE_GAINS, SPACE_GAINS]).T
    unrotated = torch.tensor([1.0, 0.0]).repeat(layout.width // 2)
    attention.to_k.weight.zero_()
    attention.to_k.bias.copy_(unrotated)
    attention.to_q.weight.zero_()
    attention.to_q.bias.zero_()
    for index, motion in enumerate(MOTIONS):
        step = frames * torch.tensor([1.0, _sign(motion.y), _sign(motion.x)])
        turn = frequencies * step
        turn[low:] = 0
        query = torch.stack([turn.cos(), -turn.sin()], -1)
        attention.to_q.weight[:, layout.motion.start + index] = query.flatten()
    attention.to_q.weight[:, layout.carried.stop - 1] = KEEP_GAIN * CLASS_SIZE / FLAG * unrotated
    attention.norm_q.weight.copy_(gains[:, :, None].expand(-1, -1, 2).flatten())
    attention.norm_k.weight.fill_(1.0)
    _wire_values(attention, layout)


def _wire_values(attention: Any, layout: Layout) -> None:
    count, head = len(layout.to_carry), layout.width // 2
    eye = torch.eye(count)
    attention.to_v.weight.zero_()
    attention.to_v.bias.zero_()
    attention.to_v.weight[:count, layout.to_carry] = eye
    attention.to_v.weight[:count, layout.carried] = eye
    attention.to_v.weight[head : head + count, layout.carried] = eye
    out = attention.to_out[0]
    out.weight.zero_()
    out.bias.zero_()
    out.weight[layout.carried, :count] = layout.rms * eye
    out.weight[layout.carried, head : head + count] = -layout.rms * eye


def _sign(value: int) -> float:
    return float((value > 0) - (value < 0))
