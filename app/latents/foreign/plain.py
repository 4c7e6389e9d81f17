"""Safetensors files of one tensor of latents, or of one that is named as latents usually are."""

from pathlib import Path

from app.latents.foreign.found import MAX_BYTES, FileFormat, Found, as_pipelines_do, checked
from app.latents.foreign.rejected import LatentsRejected
from app.latents.foreign.safetensors_header import read_tensor
from app.models.files.stored import WeightsHeader

NAMES = ("latents", "latent", "samples", "video", "frames")


def _read(path: Path, header: WeightsHeader | None) -> Found | None:
    if header is None:
        return None
    tensors = header.tensors
    name = (
        next(iter(tensors)) if len(tensors) == 1 else next((each for each in NAMES if each in tensors), None)
    )
    if name is None:
        shown = ", ".join(list(tensors)[:10]) or "none"
        raise LatentsRejected(
            "no_latents",
            f"{path.name} has {len(tensors):,} tensors ({shown[:300]}): a file of latents has one, or one "
            f"named {' or '.join(NAMES)}",
        )
    latents = checked(read_tensor(path, tensors[name], name, MAX_BYTES), name[:100])
    return Found("safetensors file", latents, lambda _entry: True, assumed=True, frames_first=as_pipelines_do)


FORMAT = FileFormat(_read)
