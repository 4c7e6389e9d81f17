"""The VAEs of the matrix of `test_enable_matrix`: one tiny VAE a family, and some that have no family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import diffusers
import stream_vaes
import torch
from diffusers import AutoencoderKLLTXVideo
from stream_property import video_of
from torch import Tensor

_LTX = "ltx-0.9.0"


class RenamedLTXVideo(AutoencoderKLLTXVideo):
    """A subclass that changes nothing."""


class RescaledLTXVideo(AutoencoderKLLTXVideo):
    """A subclass that scales latents in its own decode, which no engine of the family knows."""

    def _decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super()._decode(z * 0.5, *args, **kwargs)


def _random(vae_class: type, config: dict[str, Any]) -> Any:
    return copy.deepcopy(_template(vae_class, tuple(config.items())))


@cache
def _template(vae_class: type, config: tuple[tuple[str, Any], ...]) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        return vae_class(**dict(config)).eval()


def _allegro() -> Any:
    """Its decode raises without tiling; its tiles are as small as its arithmetic allows."""
    vae = _random(
        diffusers.AutoencoderKLAllegro,
        {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2},
    )
    vae.kernel, vae.stride = (24, 16, 16), (16, 8, 8)
    vae.enable_tiling()
    return vae


@dataclass(frozen=True, slots=True)
class VaeCase:
    """How a family's VAE is built and called.

    `latent_frames` are enough for two chunks. `folded`: its pipeline passes frames in the batch. `encoded`:
    latent frames of the clip that it encodes, 0 for none.
    """

    build: Callable[[], Any]
    latent_frames: int = 3
    folded: bool = False
    encoded: int = 2
    shape_of: str = ""  # the row of `stream_vaes` whose clip it encodes
    arguments: dict[str, Any] = field(default_factory=dict)

    def latents(self, vae: Any) -> Tensor:
        """What the pipeline passes to `vae.decode`."""
        video = stream_vaes.latents_of(vae, self.latent_frames, sides=(2, 2))
        return video[0].transpose(0, 1).contiguous() if self.folded else video

    def clip(self) -> Tensor | None:
        """What the pipeline passes to `vae.encode`."""
        if not self.encoded:
            return None
        video = video_of(self.shape_of, self.encoded)
        return video[0].transpose(0, 1).contiguous() if self.folded else video


def _family(name: str, **more: Any) -> VaeCase:
    return VaeCase(partial(stream_vaes.build, name), shape_of=name, **more)


def _subclass(vae_class: type) -> VaeCase:
    return VaeCase(partial(_random, vae_class, stream_vaes.CONFIGS[_LTX][1]), shape_of=_LTX)


FAMILIES: dict[str, VaeCase] = {
    "ltx": _family(_LTX),
    "ltx-noise": _family("ltx-noise", encoded=0),
    "ltx2": _family("ltx2"),
    "wan": _family("wan-2.1"),
    "qwenimage": _family("qwenimage"),
    "cosmos": _family("cosmos"),
    "hunyuanvideo-1.5": _family("hunyuanvideo-1.5"),
    "hunyuanvideo-1.0": _family("hunyuanvideo-1.0"),
    "mochi": _family("mochi"),
    "magvit": _family("magvit"),
    "cogvideox": _family("cogvideox", latent_frames=4),
    "svd": _family("svd", folded=True, arguments={"num_frames": 3}),
    "kl": _family("kl", folded=True),
    "allegro": VaeCase(_allegro, latent_frames=6, encoded=0),
    "ltx-subclass": _subclass(RenamedLTXVideo),
    "ltx-override": _subclass(RescaledLTXVideo),
}
STREAMED = tuple(name for name in FAMILIES if name not in ("allegro", "ltx-subclass", "ltx-override"))
STRIPS = ("ltx", "ltx2", "kl")
USUAL = tuple(name for name in FAMILIES if name not in ("ltx-noise", "ltx-subclass"))
# One VAE for each way to stream, and one that no engine may stream.
ENGINES = ("ltx", "wan", "cosmos", "cogvideox", "hunyuanvideo-1.0", "svd", "kl", "ltx-override")
# VAEs with convolutions that pad by themselves, as classes of their own.
CAUSAL_LAYERS = ("wan", "qwenimage", "cosmos", "magvit")
