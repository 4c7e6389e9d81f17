"""Complete image-to-video pipelines of random weights, built with nothing downloaded.

One file a family: the components are those of the published models, thin in channels and layers. The videos
are noise; tests compare that noise between a pipeline alone and the same pipeline through Framefit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tiny_pipelines import (
    cogvideox,
    hunyuanvideo,
    hunyuanvideo15,
    i2vgen_xl,
    in_place,
    ltx,
    ltx2,
    photo_pan,
    svd,
    wan,
)

_BUILDERS: dict[str, Callable[[], Any]] = {
    "CogVideoXImageToVideoPipeline": cogvideox.build,
    "HunyuanVideo15ImageToVideoPipeline": hunyuanvideo15.build,
    "HunyuanVideoImageToVideoPipeline": hunyuanvideo.build,
    "I2VGenXLPipeline": i2vgen_xl.build,
    "LTX2ImageToVideoPipeline": ltx2.build,
    "LTXConditionPipeline": partial(ltx.build, "LTXConditionPipeline"),
    "LTXImageToVideoPipeline": partial(ltx.build, "LTXImageToVideoPipeline"),
    "PhotoPanPipeline": photo_pan.build,
    "StableVideoDiffusionPipeline": svd.build,
    "WanImageToVideoPipeline": wan.build,
}
# Other weights or classes of these families, for the tests that name them.
_VARIANTS: dict[str, Callable[[], Any]] = {
    "LTX2ConditionPipeline": partial(ltx2.build, "LTX2ConditionPipeline"),
    "Wan first and last": partial(wan.build, pos_embed_seq_len=2 * 5),
    "Wan without CLIP": partial(wan.build, image_dim=None),
}


def build(name: str) -> Any:
    """The pipeline class `name`, or a variant, on the CPU in float32; every parameter is random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        pipe = (_BUILDERS | _VARIANTS | in_place.BUILDERS)[name]()
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
        for denoiser in ("transformer", "unet"):
            _stir(pipe.components.get(denoiser))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(name: str, folder: Path) -> Path:
    """The pipeline as `from_pretrained` finds it."""
    build(name).save_pretrained(folder)
    return folder


def names() -> list[str]:
    """Pipeline classes that can be built and whose decode is recorded; the others are in
    `in_place.BUILDERS`.
    """
    return sorted(_BUILDERS)


def _stir(module: nn.Module | None) -> None:
    """Constant parameters (zero output layers above all) would hide what comes before them."""
    for parameter in module.parameters() if module is not None else ():
        if parameter.numel() > 1 and parameter.min() == parameter.max():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
