"""Converts pixels: images for the VAE, images for CLIP's vision tower, and decoded frames for the caller.

Pure functions; must not know components.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

ImageInput = (
    Image.Image
    | npt.NDArray[np.uint8]
    | npt.NDArray[np.floating]
    | torch.Tensor
    | Sequence[Image.Image | npt.NDArray[np.uint8] | torch.Tensor]
)

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def load_images(images: ImageInput, width: int, height: int) -> torch.Tensor:
    """One image or several -> float32 `[B, 3, height, width]` in [-1, 1].

    Accepts PIL images, arrays `[H, W, 3]` (uint8, or floats in [0, 1]) and tensors `[3, H, W]` or
    `[B, 3, H, W]` (floats in [0, 1], or in [-1, 1] if one is negative). Other sizes are scaled to cover
    width x height and cropped to the centre. Raises ValueError for tensors of integers.
    """
    if isinstance(images, torch.Tensor) and images.ndim == 4:
        return torch.cat([load_images(image, width, height) for image in images])
    if isinstance(images, Sequence):
        return torch.cat([load_images(image, width, height) for image in images])
    if isinstance(images, torch.Tensor):
        return _cover_tensor(images, width, height)
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8:
            return _cover_tensor(torch.from_numpy(images).permute(2, 0, 1), width, height)
        images = Image.fromarray(images)
    covered = _cover(images.convert("RGB"), width, height)
    pixels = torch.from_numpy(np.array(covered)).permute(2, 0, 1)[None]
    return pixels.float() / 255 * 2 - 1


def _covering_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The smallest (width, height) with the aspect ratio of `size` that covers `target`."""
    scale = max(target[0] / size[0], target[1] / size[1])
    return max(target[0], int(size[0] * scale)), max(target[1], int(size[1] * scale))


def _cover(image: Image.Image, width: int, height: int) -> Image.Image:
    wide, high = _covering_size(image.size, (width, height))
    if (wide, high) != image.size:
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - width) / 2), round((high - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _cover_tensor(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    pixels = image[None].float()
    if not image.is_floating_point():
        raise ValueError(f"image tensors must hold floats, not {image.dtype}")
    if pixels.min() >= 0:
        pixels = pixels * 2 - 1
    wide, high = _covering_size((pixels.shape[3], pixels.shape[2]), (width, height))
    if (high, wide) != tuple(pixels.shape[2:]):
        pixels = F.interpolate(pixels, (high, wide), mode="bilinear", antialias=True, align_corners=False)
    left, top = round((wide - width) / 2), round((high - height) / 2)
    return pixels[:, :, top : top + height, left : left + width]


def clip_pixels(images: torch.Tensor, side: int) -> torch.Tensor:
    """`[B, 3, H, W]` in [-1, 1] -> `[B, 3, side, side]`, normalised for CLIP's vision tower.

    Does not keep the aspect ratio. Before shrinking, blurs with the Gaussian of the original's resize: sigma
    is half the excess of the shrink factor over 1, and the window is about four sigma wide.
    """
    shrink = (images.shape[2] / side, images.shape[3] / side)
    if max(shrink) > 1:
        for dimension, factor in zip((2, 3), shrink, strict=True):
            images = _blur(images, dimension, max((factor - 1) / 2, 0.001))
    images = F.interpolate(images, (side, side), mode="bicubic", align_corners=True)
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (_CLIP_MEAN, _CLIP_STD))
    return ((images + 1) / 2 - mean) / std


def _blur(images: torch.Tensor, dimension: int, sigma: float) -> torch.Tensor:
    window = int(max(4 * sigma, 3)) | 1
    offsets = torch.arange(window, dtype=images.dtype, device=images.device) - window // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (
        (weights / weights.sum()).view(-1, 1) if dimension == 2 else (weights / weights.sum()).view(1, -1)
    )
    reach = window // 2
    padding = (0, 0, reach, reach) if dimension == 2 else (reach, reach, 0, 0)
    padded = F.pad(images, padding, mode="reflect")
    channels = images.shape[1]
    return F.conv2d(padded, kernel.expand(channels, 1, *kernel.shape), groups=channels)


def to_pil(frames: torch.Tensor) -> list[Image.Image]:
    """`[T, 3, H, W]` in [0, 1] -> PIL images. Truncates instead of rounding, as the original does."""
    scaled = (frames * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(frame) for frame in scaled]


def to_output(frames: torch.Tensor, output_type: str) -> Any:
    """Convert decoded frames `[B, 3, T, H, W]` in the VAE's range to the output type.

    Lists of PIL images ("pil"), an array `[B, T, H, W, 3]` ("np") or a tensor `[B, T, 3, H, W]` ("pt"), the
    latter two in [0, 1].
    """
    video = ((frames.float().clamp(-1, 1) + 1) / 2).transpose(1, 2)
    if output_type == "pt":
        return video
    if output_type == "np":
        return video.permute(0, 1, 3, 4, 2).cpu().numpy()
    return [to_pil(clip) for clip in video]
