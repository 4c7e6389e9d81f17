"""The map from a VAE's latents to small pictures: fitted when the VAE is first loaded, then read from a file.

The file lies beside the stored profiles. Its name has a digest of the VAE's configuration and of some of its
weights, so models that share a VAE share the map, and a VAE that was trained further gets a new one. Must not
know what the pictures are for.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adaptive.decoding.encode_functions import encode
from adaptive.denoise.preview.pixel_map import LEAST_CORRELATION, PixelMap, fit_pixel_map
from adaptive.device.out_of_memory import is_out_of_memory, release_frames
from adaptive.families import family_of
from adaptive.stream.offload import execution_device
from app.artifacts.whole_file import replace_text
from app.config import Settings
from app.loops import one_line
from app.models.profiles import make_folder_of
from app.worker.device_errors import device_fault
from app.worker.roles.loaded_vae import LoadedVae

log = logging.getLogger(__name__)
PHOTOGRAPH = Path(__file__).parents[2] / "assets" / "demo.jpg"
_FORMAT: Final = 1  # of the file, and of how a map is fitted
_NUMBERS = 64  # of each parameter, in the digest
# Maps of this process, by digest: a model that is loaded again in another data folder is not fitted again.
_fitted: dict[str, PixelMap] = {}


def prepare_pixel_map(model: LoadedVae, settings: Settings) -> None:
    """Let the model show latents as pictures, if a map of its VAE is good enough.

    Where memory is missing for the fit now, there is none until the model is loaded again.
    """
    vae = model.vae
    try:
        digest = _digest(vae)
        path = settings.profiles_dir / f"pixels-{digest}.json"
        found = _fitted.get(digest) or _read(path)
        if found is None:
            found = _fit(vae)
            model.rest()
            _store(path, found)
        _fitted[digest] = found
    except Exception as error:
        if device_fault(error) is not None:
            raise
        log.warning("pixel_map_missing vae=%s reason=%s", type(vae).__name__, one_line(error))
        if is_out_of_memory(error):
            release_frames(error)
        return
    if found.correlation < LEAST_CORRELATION:
        log.info("pixel_map_poor vae=%s correlation=%.2f", type(vae).__name__, found.correlation)
        return
    model.pixel_map = found


def _fit(vae: Any) -> PixelMap:
    device = execution_device(vae)

    def encoded(clip: Tensor) -> Tensor:
        return encode(vae, clip.to(device, vae.dtype))

    with torch.no_grad():
        return fit_pixel_map(family_of(vae).traits_of(vae), _photograph(), encoded)


def _photograph() -> Tensor:
    pixels = torch.from_numpy(np.array(Image.open(PHOTOGRAPH).convert("RGB")))
    return pixels.permute(2, 0, 1) / 127.5 - 1


def _digest(vae: Any) -> str:
    """Of the configuration, and of the first numbers of each parameter."""
    digest = hashlib.sha256(f"{_FORMAT} {type(vae).__name__} {vae.dtype}".encode())
    config: Mapping[str, Any] = vae.config
    shown = {name: value for name, value in config.items() if not name.startswith("_")}
    digest.update(json.dumps(shown, sort_keys=True, default=str).encode())
    for name, parameter in sorted(vae.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        numbers = parameter.detach().flatten()[:_NUMBERS]
        if numbers.device.type != "meta":  # else it is on the disk
            digest.update(numbers.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> PixelMap | None:
    try:
        return PixelMap.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged
        return None


def _store(path: Path, fitted: PixelMap) -> None:
    try:
        make_folder_of(path)
        replace_text(path, json.dumps(fitted.to_json()))
    except OSError as error:  # it is fitted again at the next start
        log.warning("pixel_map_not_saved reason=%s", error)
