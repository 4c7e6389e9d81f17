"""Measures of picture quality: PSNR, chroma, shift between two frames, sharpness.

Pure functions of tensors; must not know how pictures are made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from app.pipelines.builtin.train.clips import TO_LUMA_CHROMA


def psnr_db(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of values in -1..1, in dB."""
    return float(10 * torch.log10(4 / (made.clamp(-1, 1) - wanted).square().mean()))


def chroma_r2(made: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """The share of the variance of each chroma axis (Cb, Cr) that `made` keeps; both [n, 3, ...] in -1..1."""
    axes = TO_LUMA_CHROMA[1:]
    a = torch.einsum("ij,nj...->in...", axes, made.clamp(-1, 1)).flatten(1)
    b = torch.einsum("ij,nj...->in...", axes, wanted).flatten(1)
    left = (a - b).square().sum(1)
    whole = (b - b.mean(1, keepdim=True)).square().sum(1)
    cb, cr = (1 - left / whole).tolist()
    return cb, cr


def block_psnr_db(made: torch.Tensor, wanted: torch.Tensor, block_px: int = 16) -> float:
    """PSNR of the means of blocks, in dB: ignores fine detail. Both [n, 3, height, width] in -1..1."""
    return psnr_db(F.avg_pool2d(made.clamp(-1, 1), block_px), F.avg_pool2d(wanted, block_px))


def luma(frame: torch.Tensor) -> torch.Tensor:
    """The luma [height, width] of an RGB picture [3, height, width]."""
    return torch.einsum("c,chw->hw", TO_LUMA_CHROMA[0], frame)


def shift_px(before: torch.Tensor, after: torch.Tensor) -> tuple[int, int]:
    """How far content moved (x, y) between two frames [3, height, width], in pixels.

    Phase correlation of their luma: Kuglin and Hines, "The phase correlation image alignment method", 1975.
    """
    height, width = before.shape[1:]
    window = torch.outer(torch.hann_window(height), torch.hann_window(width))
    first, second = (torch.fft.fft2((luma(f) - luma(f).mean()) * window) for f in (before, after))
    cross = second * first.conj()
    peak = int(torch.fft.ifft2(cross / (cross.abs() + 1e-6)).real.argmax())
    y, x = divmod(peak, width)
    return (x if x < width // 2 else x - width), (y if y < height // 2 else y - height)


def overlap(before: torch.Tensor, after: torch.Tensor, x: int, y: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The regions of two frames [3, height, width] with the same content, if it moved by (x, y)."""
    height, width = before.shape[1:]
    first = before[:, max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
    second = after[:, max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)]
    return first, second


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation of the lumas of two pictures [3, height, width]."""
    return float(torch.corrcoef(torch.stack([luma(a).flatten(), luma(b).flatten()]))[0, 1])


def sharpness(frame: torch.Tensor) -> float:
    """Mean absolute gradient of the luma of a frame [3, height, width], both axes added."""
    grey = luma(frame)
    return float(grey.diff(dim=0).abs().mean() + grey.diff(dim=1).abs().mean())


def grid_ratio(frame: torch.Tensor, period_px: int = 8) -> float:
    """Mean luma gradient across block boundaries over that elsewhere: 1 for a picture without a grid."""
    grey = luma(frame)
    across, elsewhere = [], []
    for steps in (grey.diff(dim=0).abs().mean(1), grey.diff(dim=1).abs().mean(0)):
        edge = torch.arange(1, len(steps) + 1) % period_px == 0
        across.append(steps[edge].mean())
        elsewhere.append(steps[~edge].mean())
    return float(torch.stack(across).sum() / torch.stack(elsewhere).sum())
