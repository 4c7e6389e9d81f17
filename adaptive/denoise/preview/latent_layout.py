"""How the latents of a scheduler's step lie, compared with what the pipeline gives to its VAE in the end.

A pipeline may pack latents as tokens, swap axes, fold frames into the batch, step only the frames after the
first, and normalise channels. None of it is known by name here: it is found out from one finished run, by
comparing each scheduler's last result with the latents that were decoded. Must not know pipelines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive.types import LatentShape

_LEAST_EXPLAINED = 0.95  # of the decoded latents' variance; noise added before the decode is the rest


@dataclass(frozen=True, slots=True)
class LatentLayout:
    """The scheduler that steps the video's latents, by name, and the form of its tensors.

    Decoded latents are `scale * latents + shift` for each channel. `leading_frames`: so many of the decoded
    latent frames are none of the scheduler's, or are replaced after its last step.
    """

    scheduler: str
    form: str
    leading_frames: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def frames(self, shape: LatentShape) -> range:
        """The decoded latent frames that can be taken of a step's tensors; `shape` is that of the decode."""
        return range(min(self.leading_frames, shape.frames - 1), shape.frames)

    def take(self, tensor: Tensor, shape: LatentShape, frames: Sequence[int]) -> Tensor:
        """Decoded latent frames, not yet normalised, of a tensor of a step: `[n, C, h, w]`, a copy.

        Raises `ValueError` if the tensor is not one of such a video.
        """
        viewed = _FORMS[self.form](tensor, shape)
        if viewed is None:
            raise ValueError(f"{tuple(tensor.shape)} are no latents {self.form} of a video {shape}")
        first = viewed.shape[0] - shape.frames  # of the tensor's last frames
        return torch.cat([viewed[first + frame : first + frame + 1] for frame in frames])

    def normalised(self, latents: Tensor) -> Tensor:
        """Latents `[n, C, h, w]` as the VAE takes them, in float32."""
        scale, shift = (torch.tensor(each, device=latents.device) for each in (self.scale, self.shift))
        return latents.float() * scale[:, None, None] + shift[:, None, None]


def find_layout(results: Mapping[str, Tensor], decoded: Tensor) -> LatentLayout | None:
    """The layout of a run: each scheduler's last result by its name, and what was decoded, `[1, C, T, h, w]`.

    None if no scheduler's result explains the decoded latents.
    """
    shape = LatentShape(*decoded.shape)
    target = decoded[0].detach().float().cpu()
    best: tuple[float, LatentLayout] | None = None
    for scheduler, result in results.items():
        for form, view in _FORMS.items():
            viewed = view(result.detach().float().cpu(), shape)
            if viewed is None:
                continue
            explained, layout = _fitted(scheduler, form, viewed, target)
            if explained >= _LEAST_EXPLAINED and (best is None or explained > best[0]):
                best = explained, layout
    return None if best is None else best[1]


def _fitted(scheduler: str, form: str, viewed: Tensor, target: Tensor) -> tuple[float, LatentLayout]:
    """The layout and the share of the variance of frames after the first that it explains."""
    viewed = viewed.transpose(0, 1)
    count = min(viewed.shape[1], target.shape[1])
    given, wanted = viewed[:, -count:], target[:, -count:]
    first = count > 1 and count == target.shape[1]  # the first frame may be replaced after the last step
    x, y = ((each[:, 1:] if first else each).flatten(1) for each in (given, wanted))
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    scale = ((x - x_mean) * (y - y_mean)).sum(1) / (x - x_mean).square().sum(1).clamp_min(1e-12)
    shift = y_mean[:, 0] - scale * x_mean[:, 0]
    leading = target.shape[1] - count
    if first and _explained(given[:, 0].flatten(1), wanted[:, 0].flatten(1), scale, shift) < _LEAST_EXPLAINED:
        leading = 1
    layout = LatentLayout(scheduler, form, leading, tuple(scale.tolist()), tuple(shift.tolist()))
    return _explained(x, y, scale, shift), layout


def _explained(x: Tensor, y: Tensor, scale: Tensor, shift: Tensor) -> float:
    """Share of the variance of `y` about its channels' means that `scale * x + shift` explains."""
    rest = (y - scale[:, None] * x - shift[:, None]).square().sum()
    return float(1 - rest / (y - y.mean(1, keepdim=True)).square().sum().clamp_min(1e-12))


def _channels_first(tensor: Tensor, shape: LatentShape) -> Tensor | None:
    """`[1, C, T, h, w]`."""
    if tensor.ndim != 5 or tensor.shape[:2] != (1, shape.channels):
        return None
    return tensor[0].transpose(0, 1) if tensor.shape[3:] == (shape.height, shape.width) else None


def _frames_first(tensor: Tensor, shape: LatentShape) -> Tensor | None:
    """`[1, T, C, h, w]`."""
    if tensor.ndim != 5 or tensor.shape[0] != 1:
        return None
    picture = (shape.channels, shape.height, shape.width)
    return tensor[0] if tensor.shape[2:] == picture else None


def _folded(tensor: Tensor, shape: LatentShape) -> Tensor | None:
    """`[T, C, h, w]`."""
    picture = (shape.channels, shape.height, shape.width)
    return tensor if tensor.ndim == 4 and tensor.shape[1:] == picture else None


def _tokens(tensor: Tensor, shape: LatentShape) -> Tensor | None:
    """`[1, T h w, C]`: a token for each position; more may come before them."""
    positions = shape.height * shape.width
    if tensor.ndim != 3 or tensor.shape[0] != 1 or tensor.shape[2] != shape.channels:
        return None
    frames = min(shape.frames, tensor.shape[1] // positions)
    if not frames:
        return None
    kept = tensor[0, tensor.shape[1] - frames * positions :]
    return kept.reshape(frames, shape.height, shape.width, shape.channels).permute(0, 3, 1, 2)


# Views `[T, C, h, w]` of a tensor, None where it is not of that form.
_FORMS: dict[str, Callable[[Tensor, LatentShape], Tensor | None]] = {
    "channels first": _channels_first,
    "frames first": _frames_first,
    "folded": _folded,
    "tokens": _tokens,
}
