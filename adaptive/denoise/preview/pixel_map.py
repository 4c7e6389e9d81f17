"""A linear map from a VAE's latents to small pictures, fitted to that VAE itself.

A photograph is encoded by the VAE, and least squares find the pixels of each latent position from its
channels. So there is a map for every VAE that can encode, and no table of numbers of other people's. What the
fit did not see says how good the map is; a poor one is not used. Must not know pipelines, files or jobs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adaptive.types import VaeTraits

MOST_PICTURES = 5
LEAST_CORRELATION = 0.7  # of the map's pictures with what the fit did not see
# Of the video for each pixel of a picture; a latent position becomes at most so many pixels a side.
_PIXELS_A_SIDE, _MOST_SUB = 4, 4
_RIDGE = 1e-3  # of the latents' variance; estimates of early steps are not like any encoded picture
_SAMPLES_PER_NUMBER = 4  # latent positions for each number that is fitted
_LEAST_SAMPLES = 192
_LATENT_FRAMES = 2
_LEAST_SIDE, _LARGEST_SIDE = 96, 512  # pixels of the clips
_CHANNEL_ORDERS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))  # one photograph has few colours
_HELD_OUT = 4  # of so many columns, one is left out of the fit to say how good it is


@dataclass(frozen=True, slots=True)
class PixelMap:
    """`weights` `[C + 1, 3 * sub * sub]` in float32 on the CPU; `sub` pixels a side for a latent position.

    `correlation` is that of its pictures with pixels that a fit without them did not see.
    """

    weights: Tensor
    sub: int
    correlation: float

    def pictures(self, latents: Tensor) -> Tensor:
        """Pictures `[n, 3, h * sub, w * sub]` in -1..1 of latents `[n, C, h, w]` as the VAE takes them."""
        latents = latents.float().cpu()
        flat = latents.movedim(1, -1) @ self.weights[:-1] + self.weights[-1]
        return functional.pixel_shuffle(flat.movedim(-1, 1), self.sub).clamp(-1, 1)

    def video(self, traits: VaeTraits, latents: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Some frames of a video `[C, T, h, w]`: the number of the first that is shown, and its picture."""
        frames = spread(range(latents.shape[1]))
        for frame, picture in zip(frames, self.pictures(latents[:, frames].transpose(0, 1)), strict=True):
            yield traits.video_frames(frame) if frame else 0, picture

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"weights": self.weights.tolist(), "sub": self.sub, "correlation": self.correlation}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PixelMap:
        """What `to_json` gave. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        weights = torch.tensor(content["weights"], dtype=torch.float32)
        if weights.ndim != 2 or weights.shape[1] != 3 * content["sub"] ** 2:
            raise ValueError(f"no map: weights {tuple(weights.shape)}, sub {content['sub']}")
        return cls(weights, int(content["sub"]), float(content["correlation"]))


def spread(frames: Sequence[int]) -> list[int]:
    """The latent frames to show of these: the first, the last, then some between."""
    count = min(MOST_PICTURES, len(frames))
    chosen = [frames[round(index * (len(frames) - 1) / max(1, count - 1))] for index in range(count)]
    return list(dict.fromkeys((chosen[0], chosen[-1], *chosen)))


def fit_pixel_map(traits: VaeTraits, photograph: Tensor, encode: Callable[[Tensor], Tensor]) -> PixelMap:
    """The map for a VAE, whose pictures may be poor: see `PixelMap.correlation`.

    `photograph` is `[3, H, W]` in -1..1. `encode(clip)` gives the latents `[1, C, t, h, w]` that the VAE
    decodes to the clip `[1, 3, F, H, W]`; a VAE of single pictures gets clips of one frame.
    """
    sub = max(1, min(_MOST_SUB, traits.spatial_ratio // _PIXELS_A_SIDE))
    latents: list[Tensor] = []
    pixels: list[Tensor] = []
    for clip in _clips(traits, photograph):
        encoded = encode(clip)[0].float().cpu()
        latents.append(encoded)
        pixels.append(_targets(traits, clip[0], encoded.shape[1], sub))
    held = torch.arange(latents[0].shape[-1]) % _HELD_OUT == 1
    seen = _solved(
        [_rows(each[..., ~held]) for each in latents], [_rows(each[..., ~held]) for each in pixels]
    )
    unseen = _with_one(torch.cat([_rows(each[..., held]) for each in latents])) @ seen.double()
    correlation = _correlation(unseen, torch.cat([_rows(each[..., held]) for each in pixels]))
    weights = _solved([_rows(each) for each in latents], [_rows(each) for each in pixels])
    return PixelMap(weights, sub, correlation)


def _clips(traits: VaeTraits, photograph: Tensor) -> list[Tensor]:
    """Clips that move over the photograph, with their colours exchanged, each the other way round."""
    still = traits.temporal_ratio == 1
    latent_frames = 1 if still else _LATENT_FRAMES
    frames = traits.video_frames(latent_frames)
    samples = max(_LEAST_SAMPLES, _SAMPLES_PER_NUMBER * (traits.latent_channels + 1))
    positions = math.ceil((samples / (latent_frames * len(_CHANNEL_ORDERS))) ** 0.5)  # a side
    side = min(_LARGEST_SIDE, max(_LEAST_SIDE, positions * traits.spatial_ratio))
    side = max(1, side // traits.spatial_ratio) * traits.spatial_ratio
    wide = side + frames - 1
    scaled = functional.interpolate(photograph[None], (wide, wide), mode="bilinear", antialias=True)[0]
    moving = torch.stack([scaled[:, at : at + side, at : at + side] for at in range(frames)], dim=1)
    return [
        (moving if number % 2 == 0 else moving.flip(1, 3))[list(order)].contiguous()[None]
        for number, order in enumerate(_CHANNEL_ORDERS)
    ]


def _targets(traits: VaeTraits, clip: Tensor, latent_frames: int, sub: int) -> Tensor:
    """The pixels `[3 * sub * sub, t, h, w]` of each latent frame: the mean of those that it decodes to."""
    ends = [traits.video_frames(count) for count in range(1, latent_frames + 1)]
    spans = zip([0, *ends], ends, strict=False)
    means = torch.stack([clip[:, start:end].mean(1) for start, end in spans])  # [t, 3, H, W]
    small = functional.avg_pool2d(means, traits.spatial_ratio // sub)
    return functional.pixel_unshuffle(small, sub).transpose(0, 1)


def _rows(values: Tensor) -> Tensor:
    """`[n, C]` of `[C, t, h, w]`."""
    return values.flatten(1).T.double()


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _solved(latents: list[Tensor], pixels: list[Tensor]) -> Tensor:
    """Least squares with a little ridge, so that more numbers than positions do no harm."""
    x, y = torch.cat(latents), torch.cat(pixels)
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = x - x_mean
    gram = centred.T @ centred
    gram += torch.eye(len(gram), dtype=gram.dtype) * (_RIDGE * gram.diagonal().mean() + 1e-12)
    slopes = torch.linalg.solve(gram, centred.T @ (y - y_mean))
    return torch.cat([slopes, (y_mean - x_mean @ slopes)[None]]).float()


def _correlation(one: Tensor, other: Tensor) -> float:
    """Of all numbers, each colour about its own mean."""
    one, other = one.double() - one.double().mean(0), other - other.mean(0)
    return float((one * other).sum() / (one.norm() * other.norm()).clamp_min(1e-12))
