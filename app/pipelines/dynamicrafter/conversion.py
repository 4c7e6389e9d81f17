"""From a published checkpoint to a pipeline, and once and for all to a diffusers folder.

Owns the joining of file, architecture and vocabulary. `convert` is what the command line calls.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import CLIPTokenizer

from app.pipelines.dynamicrafter.checkpoint import CheckpointError, check, fill, read_tensors
from app.pipelines.dynamicrafter.components import (
    PartialConfigs,
    build_scheduler,
    component_configs,
    empty_components,
    layout_of,
)
from app.pipelines.dynamicrafter.pipeline import DynamiCrafterPipeline
from app.pipelines.dynamicrafter.scheduler import DynamiCrafterScheduler
from app.pipelines.dynamicrafter.tokenizer import find_tokenizer, load_tokenizer

_RESCALE_TOLERANCE = 1e-3


def load_components(
    path: str | Path,
    resolution: int,
    tokenizer: str | Path | CLIPTokenizer | None = None,
    config: PartialConfigs | None = None,
    torch_dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Every component of the pipeline, from the checkpoint at `path` (`model.ckpt` or safetensors).

    `tokenizer`: a CLIP tokenizer, its folder or CLIP's merges file; searched beside the checkpoint if None.
    `config`: changes to the published component configurations, such as `{"unet": {"block_out_channels":
    ...}}`. Raises FileNotFoundError, UnreadableCheckpoint, CheckpointMismatch (naming missing, extra and
    misshaped keys), CheckpointError for a file of another resolution, and ValueError for an unknown
    resolution or configuration.
    """
    path = Path(path)
    configs = component_configs(resolution, config)
    components: dict[str, Any] = dict(empty_components(configs))
    scheduler = build_scheduler(configs)
    tensors = read_tensors(path)
    sources = check(path, tensors, components, layout_of(components))
    _check_rescale(path, tensors, scheduler)
    words = load_tokenizer(find_tokenizer(path) if tokenizer is None else tokenizer)
    for name, component in components.items():
        fill(component, sources[name], tensors, torch_dtype)
    return {**components, "tokenizer": words, "scheduler": scheduler}


def _check_rescale(path: Path, tensors: dict[str, torch.Tensor], scheduler: DynamiCrafterScheduler) -> None:
    """The 512 and 1024 files have the same keys; only this leftover table tells them apart."""
    if "scale_arr" not in tensors:
        return
    found = float(tensors["scale_arr"][-1])
    expected = scheduler.config.rescale_base
    if expected is None or abs(found - expected) > _RESCALE_TOLERANCE:
        raise CheckpointError(
            f"{path.name} was trained with a dynamic rescale to {found:.3g}, not {expected}:"
            " is it the model of another resolution?"
        )


def from_single_file(
    path: str | Path,
    resolution: int,
    tokenizer: str | Path | CLIPTokenizer | None = None,
    config: PartialConfigs | None = None,
    torch_dtype: torch.dtype = torch.float32,
) -> DynamiCrafterPipeline:
    """The pipeline of a published checkpoint; arguments and errors are those of `load_components`."""
    return DynamiCrafterPipeline.from_single_file(path, resolution, tokenizer, config, torch_dtype)


def convert(
    path: str | Path,
    out_dir: str | Path,
    resolution: int,
    tokenizer: str | Path | CLIPTokenizer | None = None,
    config: PartialConfigs | None = None,
    torch_dtype: torch.dtype = torch.float16,
) -> Path:
    """Write the checkpoint at `path` as a folder that `DynamiCrafterPipeline.from_pretrained` loads; returns
    it.

    The folder appears only when it is complete. Raises FileExistsError where `out_dir` exists, and what
    `load_components` raises.
    """
    out_dir = Path(out_dir)
    if out_dir.exists():
        raise FileExistsError(f"{out_dir} exists already")
    pipeline = from_single_file(path, resolution, tokenizer, config, torch_dtype)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as partial:
        folder = Path(partial) / out_dir.name
        pipeline.save_pretrained(folder)
        folder.rename(out_dir)
    return out_dir
