"""The built-in model's autoencoder: an unmodified `AutoencoderKLLTXVideo` with weights in closed form.

Owns its shape and its weights. Must not know the denoiser or how the transform is fitted.

Every latent frame holds one key frame (0, 4, 8 and so on), encoded as an image by the linear `Transform`, and
four motion channels: 1 in the channel of the pan's direction, or 0 in all for a still. The decoder makes each
key frame's image, and the three frames before it by moving pictures. At 4-pixel cells it moves the frame half
way by one cell; then, at 2-pixel cells, the frames a quarter way. Each move is a residual block: where its
motion is on, it adds the neighbouring cell of the previous frame less the cell itself. At the picture's edge
there is no neighbour, and the frame keeps the key frame's cell.

Two means make a network of SiLUs and norms linear:

- A constant channel is far larger than the picture. So RMSNorm divides by a constant, and SiLU's inputs are
  so small that it only halves them.
- In a block, the second norm is the switch. Where the motion is off, a channel far larger than the constant
  makes the norm scale all other channels to nearly zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo

from app.pipelines.builtin.train.clips import PANS, Motion
from app.pipelines.builtin.train.transform import BLOCK_PX, Transform, luma_and_chroma_weights
from app.pipelines.builtin.train.wiring import CLASS_SIZE

PICTURE_CHANNELS = 52
LATENT_CHANNELS = PICTURE_CHANNELS + len(PANS)
KEY_FRAME_EVERY = 4
WIDTH, FINE_WIDTH = 64, 16
CONFIG = {
    "latent_channels": LATENT_CHANNELS,
    "patch_size": 2,
    "block_out_channels": (WIDTH, WIDTH),
    "layers_per_block": (0, 0, 0),
    "down_block_types": ("LTXVideoDownBlock3D",) * 2,
    "spatio_temporal_scaling": (True, True),
    "downsample_type": ("conv", "conv"),
    "decoder_block_out_channels": (WIDTH, WIDTH),
    "decoder_layers_per_block": (len(PANS), len(PANS), 0),
    "decoder_spatio_temporal_scaling": (True, True),
    "decoder_inject_noise": (False,) * 3,
    "upsample_residual": (False, False),
    "upsample_factor": (WIDTH // FINE_WIDTH, 1),
    "encoder_causal": True,
    "decoder_causal": False,
}

PATCH = 12  # values of a 2x2 cell in three colours
CELL = 4 * PATCH  # values of a 4x4 cell
FINE_CELL = PATCH - 1  # principal components of the 12 values; the last one is negligible
ENCODER_CONSTANT, CONSTANT, INNER_CONSTANT, OFF = 32768.0, 4096.0, 128.0, 32768.0
INNER_GAIN = 64.0
# The minimum of SiLU. A motion's channel has this value when it is on, so that a small error changes nothing.
LEAST_AT, LEAST = -1.2784645, -0.2784645
LEAST_LOG_VARIANCE = -30.0


class Cells:
    """The channels of one decoder stage: picture, motion switches, motions for the next stage, constant.

    `passes`: the stage passes the motions on to the next one.
    """

    def __init__(self, width: int, picture: int, passes: bool) -> None:
        self.width, self.picture = width, picture
        self.switches = picture
        self.passed = picture + len(PANS)
        self.constant = self.passed + (len(PANS) if passes else 0)
        # A switch is +-`switch`: the norm over the four switches and the constant scales it to +-LEAST_AT.
        part = LEAST_AT**2 / width
        self.switch = CONSTANT * math.sqrt(part / (1 - len(PANS) * part))
        self.rms = math.sqrt((CONSTANT**2 + len(PANS) * self.switch**2) / width)


CELLS = Cells(WIDTH, CELL, passes=True)
FINE_CELLS = Cells(FINE_WIDTH, FINE_CELL, passes=False)


@torch.no_grad()
def wire_vae(transform: Transform) -> AutoencoderKLLTXVideo:
    """The autoencoder that computes `transform` and the moves, in evaluation mode."""
    vae: Any = AutoencoderKLLTXVideo(**CONFIG)
    for parameter in vae.parameters():
        parameter.zero_()
    order = _block_order()
    _wire_encoder(vae.encoder, transform, order)
    _wire_decoder(vae.decoder, transform, order)
    vae.latents_mean.zero_()
    vae.latents_std[:PICTURE_CHANNELS] = transform.deviation
    vae.latents_std[PICTURE_CHANNELS:] = 1 / CLASS_SIZE
    result: AutoencoderKLLTXVideo = vae.eval()
    return result


def _block_order() -> torch.Tensor:
    """[48, 2, 2]: the index in the transform of each value of a 4x4 cell, for each of a block's four cells.

    A cell's values are ordered patch value, row, column of the 2x2 patch; those of a patch as diffusers
    unpacks them: colour, column, row.
    """
    index = torch.arange(3 * BLOCK_PX**2).view(3, 2, 2, 2, 2, 2, 2)
    colour, row, patch_row, inner_row, column, patch_column, inner_column = range(7)
    order = index.permute(colour, inner_column, inner_row, patch_row, patch_column, row, column)
    return order.reshape(CELL, 2, 2)


def _wire_encoder(encoder: Any, transform: Transform, order: torch.Tensor) -> None:
    """Combine patches to 4x4 cells, and cells to a block's latents.

    Only the last time position of a causal kernel is a key frame. A strided convolution pads one position in
    front, so a kernel's last two positions are the 2x2 values that it gathers.
    """
    patch = torch.arange(PATCH)
    encoder.conv_in.conv.weight[patch, patch, -1, 1, 1] = 1
    gather, combine = (block.downsamplers[0].conv for block in encoder.down_blocks)
    for row in range(2):
        for column in range(2):
            gather.weight[patch * 4 + row * 2 + column, patch, -1, 1 + row, 1 + column] = 1
            part = transform.basis[order[:, row, column]]
            combine.weight[:PICTURE_CHANNELS, :CELL, -1, 1 + row, 1 + column] = part.T
    combine.bias[:PICTURE_CHANNELS] = -transform.basis.T @ transform.mean
    combine.bias[-1] = ENCODER_CONSTANT
    rms = ENCODER_CONSTANT / math.sqrt(WIDTH)
    latent = torch.arange(PICTURE_CHANNELS)
    encoder.conv_out.conv.weight[latent, latent, -1, 1, 1] = 2 * rms
    # The pipeline samples the photo's latents; this log variance, where diffusers clamps, makes the noise
    # negligible.
    encoder.conv_out.conv.bias[-1] = LEAST_LOG_VARIANCE


def _wire_decoder(decoder: Any, transform: Transform, order: torch.Tensor) -> None:
    latent = torch.arange(LATENT_CHANNELS)
    decoder.conv_in.conv.weight[latent, latent, 1, 1, 1] = 1
    coarse, fine = decoder.up_blocks
    _wire_coarse_cells(coarse.upsamplers[0].conv.conv, transform, order)
    to_fine = _fine_basis(transform, order)
    _wire_fine_cells(fine.upsamplers[0].conv.conv, to_fine)
    for block, cells in ((coarse, CELLS), (fine, FINE_CELLS)):
        for index, motion in enumerate(PANS):
            _wire_move(block.resnets[index], cells, index, motion)
    out = decoder.conv_out.conv
    out.weight[:, :FINE_CELL, 1, 1, 1] = 2 * FINE_CELLS.rms * to_fine


def _phases(conv: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """An upsampler's kernel [channel, time, row, column, in, 3, 3, 3] and its bias, by output phase.

    Of the two phases in time, the first is the new frame between two, the second the existing frame.
    """
    weight, bias = conv.weight, conv.bias
    return weight.view(-1, 2, 2, 2, *weight.shape[1:]), bias.view(-1, 2, 2, 2)


def _wire_coarse_cells(conv: Any, transform: Transform, order: torch.Tensor) -> None:
    weight, bias = _phases(conv)
    weight[:CELL, :, :, :, :PICTURE_CHANNELS, 1] = transform.synthesis[order][:, None]
    bias[:CELL] = transform.mean[order][:, None]
    _wire_switches(weight, bias, CELLS, PICTURE_CHANNELS)
    for index in range(len(PANS)):
        weight[CELLS.passed + index, :, :, :, PICTURE_CHANNELS + index, 1, 1, 1] = 1


def _wire_fine_cells(conv: Any, to_fine: torch.Tensor) -> None:
    weight, bias = _phases(conv)
    patch = torch.arange(PATCH)
    for row in range(2):
        for column in range(2):
            taken = weight[:FINE_CELL, :, row, column, :, 1, 1, 1]
            taken[:, :, patch * 4 + row * 2 + column] = to_fine.T[:, None]
    _wire_switches(weight, bias, FINE_CELLS, CELLS.passed)


def _wire_switches(weight: torch.Tensor, bias: torch.Tensor, cells: Cells, motions: int) -> None:
    """Set a motion's switch down in the new frames while the motion is on.

    The channels from `motions` say which motion is on.
    """
    bias[cells.constant] = CONSTANT
    for index in range(len(PANS)):
        bias[cells.switches + index] = cells.switch
        weight[cells.switches + index, 0, :, :, motions + index, 1, 1, 1] = -2 * cells.switch


def _wire_move(resnet: Any, cells: Cells, index: int, motion: Motion) -> None:
    """Where the motion's switch is down, add the previous frame's neighbouring cell less the cell itself."""
    row, column = 1 - _sign(motion.y), 1 - _sign(motion.x)
    picture = torch.arange(cells.picture)
    first, second = resnet.conv1.conv, resnet.conv2.conv
    first.weight[picture, picture, 0, row, column] = INNER_GAIN
    first.weight[picture, picture, 1, 1, 1] = -INNER_GAIN
    constant, off = cells.picture, cells.picture + 1
    first.bias[constant] = INNER_CONSTANT
    first.weight[off, cells.switches + index, 1, 1, 1] = OFF
    first.bias[off] = -OFF * LEAST
    # Beyond the edge the constant is zero too: this switches the move off at the edge.
    first.weight[off, cells.constant, 1, 1, 1] = OFF / 8
    first.weight[off, cells.constant, 1, row, column] = -OFF / 8
    rms = INNER_CONSTANT / math.sqrt(cells.width)
    # Inverts two SiLUs, which halve, and two norms, which divide.
    second.weight[picture, picture, 1, 1, 1] = 4 * cells.rms * rms / INNER_GAIN


def _fine_basis(transform: Transform, order: torch.Tensor) -> torch.Tensor:
    """[12, 11]: the principal components of the 2x2 patches that the transform can produce."""
    made = (transform.synthesis[:, :, 1, 1] * transform.deviation)[order].view(PATCH, -1).double()
    weights = luma_and_chroma_weights(PATCH // 3)
    _, vectors = torch.linalg.eigh(weights @ made @ made.T @ weights)
    basis: torch.Tensor = vectors.flip(1)[:, :FINE_CELL].float()
    return basis


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
