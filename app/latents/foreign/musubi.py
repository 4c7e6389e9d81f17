"""Caches of musubi-tuner: `latents_FxHxW_dtype` as `[C, F, H, W]`, and the architecture in the metadata."""

import re
from pathlib import Path

from app.latents.foreign.found import MAX_BYTES, FileFormat, Found, checked
from app.latents.foreign.rejected import LatentsRejected
from app.latents.foreign.safetensors_header import read_tensor
from app.models.files.stored import WeightsHeader

_NAME = re.compile(r"latents_(\d{1,6})x(\d{1,6})x(\d{1,6})_[a-z0-9]+")
# The VAE of each architecture, and whether the cache is normalised as the model denoises it.
ARCHITECTURES = {
    "hunyuan_video": ("AutoencoderKLHunyuanVideo", False),
    "hunyuan_video_1_5": ("AutoencoderKLHunyuanVideo15", False),
    "framepack": ("AutoencoderKLHunyuanVideo", True),
    "kandinsky5": ("AutoencoderKLHunyuanVideo", True),
    "wan": ("AutoencoderKLWan", True),
    "qwen_image": ("AutoencoderKLQwenImage", True),
}


def _read(path: Path, header: WeightsHeader | None) -> Found | None:
    if header is None or "architecture" not in header.metadata:
        return None
    names = [name for name in header.tensors if _NAME.fullmatch(name)]
    if len(names) != 1:
        raise LatentsRejected(
            "no_latents", f"{path.name} is a cache with {len(names)} tensors named latents_FxHxW_dtype, not 1"
        )
    name = names[0]
    latents = checked(read_tensor(path, header.tensors[name], name, MAX_BYTES), name)
    match = _NAME.fullmatch(name)
    if match is None or list(latents.shape[-3:]) != [int(each) for each in match.groups()]:
        raise LatentsRejected("damaged_file", f"{name} has shape {list(latents.shape)}")
    architecture = header.metadata["architecture"]
    vae_class, normalised = ARCHITECTURES.get(architecture, (None, None))
    form = f"musubi-tuner cache of {architecture[:40]}"
    return Found(form, latents, lambda _entry: normalised, vae_class=vae_class)


FORMAT = FileFormat(_read)
