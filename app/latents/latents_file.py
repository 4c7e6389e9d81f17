"""Files of latents that were encoded from clips: one tensor, and in the metadata all that decoding needs.

`latents` is `[1, C, T, h, w]` as the model denoises it, unless the file is raw. Owns the file's form. What a
job records of its decode has another form (see `adaptive.pipelines.recorded_call`).
"""

import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from adaptive.families import family_of
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode
from app.latents.latent_scale import LatentScale
from app.latents.tensor_file import TensorFile, TensorSpec

FORMAT = "framefit-latents"
FORMAT_VERSION = "1"
NAME = "latents"


@dataclass(frozen=True, slots=True)
class LatentsInfo:
    """What a file of latents says of itself.

    `normalised`: "per_channel", "scaling_factor", "none" (the model has the VAE's own latents) or "raw"
    (nothing was done); `scale` holds the numbers, neutral ones where the file is raw.
    """

    model: str
    source: str
    vae_class: str
    clip: str
    frames: int
    width: int
    height: int
    fps: Fraction
    normalised: str
    scale: LatentScale

    def metadata(self) -> dict[str, str]:
        """For a safetensors header."""
        own = {name: str(value) for name, value in asdict(self).items() if name != "scale"}
        scale = json.dumps(self.scale.as_json())
        return {"format": FORMAT, "version": FORMAT_VERSION, "posterior": "mean", **own, "scale": scale}


def create(path: Path, info: LatentsInfo, spec: TensorSpec) -> TensorFile:
    """A file whose `NAME` is to be written part by part."""
    return TensorFile(path, {NAME: spec}, info.metadata())


def read_info(path: Path) -> LatentsInfo | None:
    """What the file says of itself; None for any other safetensors file. `ValueError` where it is broken."""
    found = _metadata(path)
    if found.get("format") != FORMAT:
        return None
    if found.get("version") != FORMAT_VERSION:
        raise ValueError(f"{path.name} is of version {found.get('version')}, known is {FORMAT_VERSION}")
    try:
        return LatentsInfo(
            model=found["model"],
            source=found["source"],
            vae_class=found["vae_class"],
            clip=found["clip"],
            frames=int(found["frames"]),
            width=int(found["width"]),
            height=int(found["height"]),
            fps=Fraction(found["fps"]),
            normalised=found["normalised"],
            scale=LatentScale.from_json(json.loads(found["scale"])),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path.name} has a broken header: {error!r}") from None


def load(path: Path, info: LatentsInfo, vae: Any) -> RecordedClip:
    """The decode that gives the clip back, as its VAE takes it."""
    with safe_open(path, framework="pt", device="cpu") as file:
        latents: Tensor = file.get_tensor(NAME)
    restored = info.scale.restored(latents).to(vae.dtype)
    return RecordedClip((RecordedDecode(restored, kwargs=family_of(vae).clean_kwargs(vae)),))


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # safetensors has its own error, not derived from OSError or ValueError
        raise ValueError(f"{path.name} is no safetensors file: {error}") from error
