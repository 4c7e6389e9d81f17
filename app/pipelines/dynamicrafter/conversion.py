"""Converts a published checkpoint to a folder that diffusers loads. `framefit convert` calls `convert`."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import CLIPTokenizer

from app.pipelines.dynamicrafter.checkpoint.loading import OnProgress, ignore_progress, load_components
from app.pipelines.dynamicrafter.components import PartialConfigs
from app.pipelines.dynamicrafter.pipeline import DynamiCrafterPipeline

# Share of the progress that reading takes; writing the folder takes the rest.
_READING = 0.6


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
    on_progress: OnProgress = ignore_progress,
) -> Path:
    """Write the checkpoint at `path` as a folder that diffusers loads; returns the folder.

    The folder appears when it is complete; a folder that it replaces exists until then. Raises what
    `load_components` raises, and FileExistsError if `out_dir` exists and `overwrite` is False or it is not a
    pipeline's folder.
    """
    out_dir = Path(out_dir)
    _check_target(out_dir, overwrite)

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


def _check_target(out_dir: Path, overwrite: bool) -> None:
    if not out_dir.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{out_dir} exists already: choose another folder, or allow overwriting")
    if not (out_dir / "model_index.json").is_file():
        raise FileExistsError(
            f"{out_dir} is not a pipeline's folder and is not replaced: choose another folder"
        )
