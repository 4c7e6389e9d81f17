"""The model `photo-pan`: a camera that moves over a photograph. Its folder; its classes on first use.

`rules` has what the API process must know. Importing this package imports neither torch nor diffusers.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.pipelines.photo_pan.denoiser import PhotoPanDenoiser
    from app.pipelines.photo_pan.pipeline import PhotoPanPipeline

__all__ = ["MODEL_FOLDER", "PhotoPanDenoiser", "PhotoPanPipeline", "build"]

MODEL_FOLDER = Path(__file__).with_name("model")
_HOME = {"PhotoPanDenoiser": "denoiser", "PhotoPanPipeline": "pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def build(_folder: Path) -> Path:
    """The model's folder. It ships with Framefit, so there is nothing to build."""
    return MODEL_FOLDER
