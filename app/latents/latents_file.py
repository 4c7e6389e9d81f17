"""The format of files of latents that were encoded from clips: one tensor, and metadata for decoding it.

The tensor `latents` is `[1, C, T, h, w]`, normalised as the model denoises it unless the file is raw. A job's
recorded decode has another format (see `adaptive.pipelines.recorded_call`).
"""

import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from adaptive.families import family_of
from adaptive.pipelines import checksum
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode
from app.latents.latent_scale import LatentScale
from app.latents.tensor_file import TensorFile, TensorSpec

FORMAT = "framefit-latents"
FORMAT_VERSION = "1"
NAME = "latents"
_MAX_RATE = 2**31  # a container's numbers


@dataclass(frozen=True, slots=True)
class LatentsInfo:
    """The metadata of a file of latents.

    `normalised` is "per_channel", "scaling_factor", "none" (the model uses the VAE's own latents) or "raw"
    (not normalised). `scale` has the numbers, which are neutral in a raw file.
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
        """The fields as strings for a safetensors header."""
        own = {name: str(value) for name, value in asdict(self).items() if name != "scale"}
        scale = json.dumps(self.scale.as_json())
        kind = {"format": FORMAT, "version": FORMAT_VERSION, "posterior": "mean"}
        return {**kind, **own, "scale": scale, checksum.FIELD: checksum.BLANK}


def create(path: Path, info: LatentsInfo, spec: TensorSpec) -> TensorFile:
    """Open a new file for writing; write its tensor `NAME` part by part."""
    return TensorFile(path, {NAME: spec}, info.metadata())


def read_info(path: Path) -> LatentsInfo | None:
    """The metadata of a file of latents; None for any other safetensors file.

    Raises `ValueError` for a file that is damaged or of another format version.
    """
    found = _metadata(path)
    if found.get("format") != FORMAT:
        return None
    if found.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{path.name} has version {found.get('version')}; this version reads {FORMAT_VERSION}"
        )
    try:
        return LatentsInfo(
            model=found["model"],
            source=found["source"],
            vae_class=found["vae_class"],
            clip=found["clip"],
            frames=int(found["frames"]),
            width=int(found["width"]),
            height=int(found["height"]),
            fps=_rate(found["fps"]),
            normalised=found["normalised"],
            scale=LatentScale.from_json(json.loads(found["scale"])),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{path.name} has a damaged header: {error!r}") from None


def load(path: Path, info: LatentsInfo, vae: Any) -> RecordedClip:
    """The decode call that turns the file's latents into the clip again, in the VAE's dtype.

    Raises `ValueError` if the file's bytes have changed since it was written.
    """
    checksum.verify(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        latents: Tensor = file.get_tensor(NAME)
    restored = info.scale.restored(latents).to(vae.dtype)
    return RecordedClip((RecordedDecode(restored, kwargs=family_of(vae).clean_kwargs(vae)),))


def _rate(text: str) -> Fraction:
    rate = Fraction(text)
    if not 0 < rate < _MAX_RATE:
        raise ValueError(f"fps {text}")
    return rate


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # safetensors has its own error, not derived from OSError or ValueError
        raise ValueError(f"{path.name} is not a safetensors file: {error}") from error
