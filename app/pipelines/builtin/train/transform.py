"""The linear transform between pictures and latents, fitted to photographs by least squares.

The latents of a block of 8x8 pixels are its first principal components, with chroma weighted a little less
than luma. A block is reconstructed from its own latents and those of its eight neighbours, which hides the
block boundaries. Owns the statistics; must not know networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from app.pipelines.builtin.train.clips import TO_LUMA_CHROMA

BLOCK_PX = 8
BLOCK_VALUES = 3 * BLOCK_PX**2
RIDGE = 1e-4
CHROMA_WEIGHT = 0.8


@dataclass(frozen=True, slots=True)
class Transform:
    """Converts pictures to latents and back. Values of a block are ordered colour, row, column.

    `mean` [192] is the mean block; `basis` [192, latents] has a column for each latent; `synthesis`
    [192, latents, 3, 3] makes a block less its mean from the latents of 3x3 blocks; `deviation` [latents]
    has the standard deviations.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    synthesis: torch.Tensor
    deviation: torch.Tensor

    def analyse(self, pictures: torch.Tensor) -> torch.Tensor:
        """Convert pictures [n, 3, height, width] in -1..1 to latents [n, latents, height / 8, width / 8]."""
        centred = F.pixel_unshuffle(pictures, BLOCK_PX) - self.mean[:, None, None]
        return torch.einsum("nbhw,bk->nkhw", centred, self.basis)

    def synthesise(self, latents: torch.Tensor) -> torch.Tensor:
        """Convert latents to pictures. Beyond the edge, latents count as zero, which is the mean block."""
        blocks = F.conv2d(latents, self.synthesis, self.mean, padding=1)
        return F.pixel_shuffle(blocks, BLOCK_PX)


def fit(pictures: Sequence[torch.Tensor], latents: int) -> Transform:
    """Fit a transform with `latents` values a block to pictures [3, height, width] in -1..1."""
    blocks = [F.pixel_unshuffle(picture, BLOCK_PX) for picture in pictures]
    count = sum(block[0].numel() for block in blocks)
    mean = torch.stack([block.sum((1, 2)) for block in blocks]).sum(0) / count
    blocks = [block - mean[:, None, None] for block in blocks]
    basis, variances = _principal_components(blocks, latents)
    return Transform(mean, basis, _synthesis(blocks, basis), variances.sqrt())


def _principal_components(blocks: Sequence[torch.Tensor], latents: int) -> tuple[torch.Tensor, torch.Tensor]:
    covariance = torch.zeros(BLOCK_VALUES, BLOCK_VALUES, dtype=torch.float64)
    count = 0
    for block in blocks:
        values = block.flatten(1)
        covariance += values @ values.T
        count += values.shape[1]
    weights = luma_and_chroma_weights(BLOCK_PX**2)
    variances, vectors = torch.linalg.eigh(weights @ (covariance / count) @ weights)
    return (weights @ vectors.flip(1)[:, :latents]).float(), variances.flip(0)[:latents].float()


def luma_and_chroma_weights(pixels: int) -> torch.Tensor:
    """A matrix [3 pixels, 3 pixels], float64, that keeps luma and scales chroma by `CHROMA_WEIGHT`."""
    luma = F.normalize(TO_LUMA_CHROMA[0].double(), dim=0)
    grey = torch.outer(luma, luma)
    colours = grey + CHROMA_WEIGHT * (torch.eye(3, dtype=torch.float64) - grey)
    weights: torch.Tensor = torch.kron(colours, torch.eye(pixels, dtype=torch.float64))
    return weights


def _synthesis(blocks: Sequence[torch.Tensor], basis: torch.Tensor) -> torch.Tensor:
    """Ridge regression of blocks on the latents of 3x3 blocks, zero beyond the edge as a decoder pads."""
    latents = basis.shape[1]
    gram = torch.zeros(9 * latents, 9 * latents, dtype=torch.float64)
    moments = torch.zeros(9 * latents, BLOCK_VALUES, dtype=torch.float64)
    for block in blocks:
        neighbours = F.unfold(torch.einsum("bhw,bk->khw", block, basis), 3, padding=1)
        gram += neighbours @ neighbours.T
        moments += neighbours @ block.flatten(1).T
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(9 * latents, dtype=torch.float64)
    solved: torch.Tensor = torch.linalg.solve(gram + ridge, moments).float()
    return solved.T.reshape(BLOCK_VALUES, latents, 3, 3)
