"""From a published checkpoint to a pipeline, and once and for all to a diffusers folder.

Owns the joining of file, architecture and vocabulary. `convert` is what the command line calls.
"""

from collections.abc import Callable
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
# Share of a conversion that reading is; writing the folder is the rest.
_READING = 0.6

OnProgress = Callable[[float, str], None]
"""Told the share that is done, 0 to 1, and what comes next."""


def _untold(_share: float, _what: str) -> None:
    """Nobody listens."""


def load_components(
    path: str | Path,
    resolution: int,
    tokenizer: str | Path | CLIPTokenizer | None = None,
    config: PartialConfigs | None = None,
    torch_dtype: torch.dtype = torch.float32,
    on_progress: OnProgress = _untold,
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
    on_progress(0.0, f"reading {path.name}")
    tensors = read_tensors(path)
    sources = check(path, tensors, components, layout_of(components))
    _check_rescale(path, tensors, scheduler)
    words = load_tokenizer(find_tokenizer(path) if tokenizer is None else tokenizer)
    sizes = {name: sum(weight.numel() for weight in part.parameters()) for name, part in components.items()}
    done = 0
    for name, component in components.items():
        on_progress(done / sum(sizes.values()), f"reading {name}")
        fill(component, sources[name], tensors, torch_dtype)
        done += sizes[name]
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
    *,
    overwrite: bool = False,
    on_progress: OnProgress = _untold,
) -> Path:
    """Write the checkpoint at `path` as a folder that `DynamiCrafterPipeline.from_pretrained` loads; returns
    it.

    The folder appears only when it is complete; one that is replaced stays until then. Raises FileExistsError
    where `out_dir` exists, even with `overwrite` if it is no pipeline's folder, and what `load_components`
    raises.
    """
    out_dir = Path(out_dir)
    _check_free(out_dir, overwrite)

    def reading(share: float, what: str) -> None:
        on_progress(share * _READING, what)

    components = load_components(path, resolution, tokenizer, config, torch_dtype, reading)
    pipeline = DynamiCrafterPipeline(**components, resolution=resolution)
    on_progress(_READING, f"writing {out_dir.name}")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as partial:
        folder = Path(partial) / out_dir.name
        pipeline.save_pretrained(folder)
        if out_dir.exists():
            out_dir.rename(Path(partial) / "replaced")
        folder.rename(out_dir)
    on_progress(1.0, "done")
    return out_dir


def _check_free(out_dir: Path, overwrite: bool) -> None:
    if not out_dir.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{out_dir} exists already; it is replaced only if that is asked for")
    if not (out_dir / "model_index.json").is_file():
        raise FileExistsError(f"{out_dir} is no pipeline's folder, so it is not replaced")
