"""ComfyUI's `.latent` files: `latent_tensor`, and an empty `latent_format_version_0` in all but the oldest.

ComfyUI keeps latents as its VAEs make them. Files without the mark are in Stable Diffusion's scale.
"""

from pathlib import Path

from app.latents.foreign.found import MAX_BYTES, FileFormat, Found, checked
from app.latents.foreign.safetensors_header import read_tensor
from app.models.entries import ModelEntry
from app.models.files.stored import WeightsHeader

TENSOR = "latent_tensor"
MARK = "latent_format_version_0"
OLD_FACTOR = 0.18215
# In ComfyUI these VAEs normalise and restore themselves; Cosmos' with numbers that diffusers has elsewhere.
_NORMALISE = frozenset({"AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video"})
_UNKNOWN = frozenset({"AutoencoderKLCosmos"})


def _normalised(entry: ModelEntry) -> bool | None:
    return None if entry.vae_class in _UNKNOWN else entry.vae_class in _NORMALISE


def _read(path: Path, header: WeightsHeader | None) -> Found | None:
    if header is None or TENSOR not in header.tensors:
        return None
    latents = checked(read_tensor(path, header.tensors[TENSOR], TENSOR, MAX_BYTES), TENSOR)
    if MARK not in header.tensors:
        note = f"it has no {MARK}, so it was divided by {OLD_FACTOR}"
        return Found(
            "old ComfyUI latent",
            latents / OLD_FACTOR,
            lambda _entry: False,
            notes=(note,),
            frames_first=_images,
        )
    return Found("ComfyUI latent", latents, _normalised, frames_first=_images)


def _images(_entry: ModelEntry, dimensions: int) -> bool:
    """A batch of images, such as an image VAE's video, is `[N, C, h, w]`; other video `[B, C, T, h, w]`."""
    return dimensions == 4


FORMAT = FileFormat(_read)
