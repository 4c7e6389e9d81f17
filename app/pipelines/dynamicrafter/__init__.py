"""DynamiCrafter (256, 512 and 1024) as a diffusers pipeline.

Owns the model family: UNet, image projector, scheduler, conditioning, pipeline, and loading of the published
checkpoints. Must not know jobs, HTTP or decode planning: it calls `vae.decode` like any pipeline, and the
caller that captures the call decides how many frames are decoded at once.

Names are imported on first use, so that processes that must not import torch can read `defaults`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.pipelines.dynamicrafter.call import DynamiCrafterPipelineOutput
    from app.pipelines.dynamicrafter.checkpoint.reading import CheckpointMismatch
    from app.pipelines.dynamicrafter.components import described_components
    from app.pipelines.dynamicrafter.conversion import convert, from_single_file
    from app.pipelines.dynamicrafter.defaults import DEFAULTS, ResolutionDefaults
    from app.pipelines.dynamicrafter.networks.projector import DynamiCrafterImageProjector
    from app.pipelines.dynamicrafter.networks.unet import DynamiCrafterUNet
    from app.pipelines.dynamicrafter.pipeline import DynamiCrafterPipeline
    from app.pipelines.dynamicrafter.scheduler import DynamiCrafterScheduler
    from app.pipelines.dynamicrafter.tiny import build_tiny_pipeline

_HOME = {
    "CheckpointMismatch": "checkpoint.reading",
    "DEFAULTS": "defaults",
    "DynamiCrafterImageProjector": "networks.projector",
    "DynamiCrafterPipeline": "pipeline",
    "DynamiCrafterPipelineOutput": "call",
    "DynamiCrafterScheduler": "scheduler",
    "DynamiCrafterUNet": "networks.unet",
    "ResolutionDefaults": "defaults",
    "build_tiny_pipeline": "tiny",
    "convert": "conversion",
    "described_components": "components",
    "from_single_file": "conversion",
}

__all__ = [
    "DEFAULTS",
    "CheckpointMismatch",
    "DynamiCrafterImageProjector",
    "DynamiCrafterPipeline",
    "DynamiCrafterPipelineOutput",
    "DynamiCrafterScheduler",
    "DynamiCrafterUNet",
    "ResolutionDefaults",
    "build_tiny_pipeline",
    "convert",
    "described_components",
    "from_single_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
