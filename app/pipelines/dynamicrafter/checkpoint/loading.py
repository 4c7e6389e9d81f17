"""Loads every component of a pipeline from a published checkpoint.

Owns the order: configurations, file, tokenizer, weights.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from app.pipelines.dynamicrafter.checkpoint.keymap import Layout
from app.pipelines.dynamicrafter.checkpoint.reading import CheckpointError, check, fill, read_tensors
from app.pipelines.dynamicrafter.components import (
    PartialConfigs,
    build_scheduler,
    component_configs,
    empty_components,
)
from app.pipelines.dynamicrafter.scheduler import DynamiCrafterScheduler
from app.pipelines.dynamicrafter.tokenizer import find_tokenizer, load_tokenizer

_RESCALE_TOLERANCE = 1e-3

OnProgress = Callable[[float, str], None]
"""Called with the share that is done (0 to 1) and the name of the step that begins."""


def ignore_progress(_share: float, _what: str) -> None:
    """Do nothing: the default of `on_progress`."""


def load_components(
    path: str | Path,
    resolution: int,
    tokenizer: str | Path | CLIPTokenizer | None = None,
    config: PartialConfigs | None = None,
    torch_dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """The pipeline's components by name, from the checkpoint at `path` (`model.ckpt` or safetensors).

    `tokenizer`: a CLIP tokenizer, its folder or CLIP's merges file; if None, searched in the checkpoint's
    folder. `config`: changes to the published component configurations, for example
    `{"unet": {"block_out_channels": ...}}`. `torch_dtype`: of all components, or by
    name with "default". Raises FileNotFoundError, UnreadableCheckpoint,
    CheckpointMismatch (with missing, extra and misshaped keys), CheckpointError for a file of another
    resolution, and ValueError for an unknown resolution or configuration.
    """
    path = Path(path)
    configs = component_configs(resolution, config)
    components: dict[str, Any] = dict(empty_components(configs))
    scheduler = build_scheduler(configs)
    on_progress(0.0, f"reading {path.name}")
    tensors = read_tensors(path)
    sources = check(path, tensors, components, layout_of(components))
    _check_rescale(path, tensors, scheduler)
    loaded_tokenizer = load_tokenizer(find_tokenizer(path) if tokenizer is None else tokenizer)
    sizes = {name: sum(weight.numel() for weight in part.parameters()) for name, part in components.items()}
    done = 0
    for name, component in components.items():
        on_progress(done / sum(sizes.values()), f"reading {name}")
        dtypes = torch_dtype if isinstance(torch_dtype, Mapping) else {"default": torch_dtype}
        fill(component, sources[name], tensors, dtypes.get(name, dtypes["default"]))
        done += sizes[name]
    return {**components, "tokenizer": loaded_tokenizer, "scheduler": scheduler}


def _check_rescale(path: Path, tensors: dict[str, torch.Tensor], scheduler: DynamiCrafterScheduler) -> None:
    """Check the resolution: only this unused table differs between the 512 and 1024 files."""
    if "scale_arr" not in tensors:
        return
    found = float(tensors["scale_arr"][-1])
    expected = scheduler.config.rescale_base
    if expected is None or abs(found - expected) > _RESCALE_TOLERANCE:
        raise CheckpointError(
            f"{path.name} was trained with a dynamic rescale to {found:.3g}, not {expected}:"
            " it is the model of another resolution; check the resolution given"
        )


def layout_of(components: Mapping[str, Any]) -> Layout:
    """The numbers of the architecture that the original key names depend on."""
    unet, vae, text_encoder = components["unet"], components["vae"], components["text_encoder"]
    return Layout(
        unet_layers_per_block=len(unet.down_blocks[0].resnets),
        unet_up_attention=tuple(hasattr(block, "attentions") for block in unet.up_blocks),
        vae_levels=len(vae.decoder.up_blocks),
        text_layers=len(text_encoder.encoder.layers),
    )
