"""Model folders for campaigns on pretended cards: tiny pipelines with some components widened.

The pipelines are those of `tests/tiny_pipelines` and the tiny DynamiCrafter. LTX's components are widened
to about 4 MiB for each GB that the published ones take. They are resident on cards of 24 and 16 GB, on 12
GB the text encoder is dropped, and on 8 GB it passes through the card in groups of layers. Wan moves one
component at a time on 24 GB, on the others its transformer in groups. All other models are resident.
"""

from __future__ import annotations

import copy
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

MIB_A_GB = 4
ENTRIES = ROOT / "tests" / "unit" / "app" / "pipelines" / "tiny_models.toml"
DYNAMICRAFTER = {
    "pipeline": "DynamiCrafterPipeline",
    "dtype": "float32",
    "vae_class": "AutoencoderKL",
    "size_multiple": 64,
    "temporal_ratio": 1,
    "first_frame_alone": False,
    "inputs": ["last_image", "loop", "fs"],
    "defaults": {
        "width": 64,
        "height": 64,
        "num_frames": 16,
        "fps": 8,
        "num_inference_steps": 1,
        "guidance_scale": 7.5,
        "fs": 24,
    },
    "limits": {"max_pixels": 16384, "max_frames": 16, "max_steps": 50},
    "call": {"eta": 1.0, "guidance_rescale": 0.7},
}


@dataclass(frozen=True)
class CardModel:
    """A model: its pipeline class (None: built in), and shapes (width, height, frames) of its jobs."""

    name: str
    pipeline: str | None
    shapes: tuple[tuple[int, int, int], ...]


MODELS = (
    CardModel("ltx", "LTXImageToVideoPipeline", ((64, 64, 17), (96, 64, 33), (128, 96, 25))),
    CardModel("wan", "WanImageToVideoPipeline", ((32, 32, 9), (64, 48, 17), (64, 64, 13))),
    CardModel("svd", "StableVideoDiffusionPipeline", ((64, 64, 4),)),
    CardModel("hunyuan", "HunyuanVideoImageToVideoPipeline", ((32, 32, 13), (48, 32, 17))),
    CardModel("dynamicrafter", "DynamiCrafterPipeline", ((64, 64, 16), (128, 64, 16))),
)
# For a short run: the built-in LTX needs no trace of its memory, and DynamiCrafter's takes two seconds.
FEW_MODELS = (CardModel("tiny", None, ((64, 64, 17), (96, 64, 33))), MODELS[-1])


def build(folder: Path, models: Sequence[CardModel] = MODELS, *, widened: bool = True) -> Path:
    """Build the models into the folder; returns the models file."""
    lines = []
    for model in models:
        if model.pipeline is None:
            continue
        source = folder / model.name
        _pipeline(model, WIDENED.get(model.name, {}) if widened else {}).save_pretrained(source)
        lines += _toml(model.name, {"source": str(source), **_entry(model)})
    path = folder / "models.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _entry(model: CardModel) -> dict[str, Any]:
    if model.pipeline == "DynamiCrafterPipeline":
        return DYNAMICRAFTER
    assert model.pipeline is not None
    entry: dict[str, Any] = tomllib.loads(ENTRIES.read_text(encoding="utf-8"))["models"][model.pipeline]
    return entry


def _toml(name: str, entry: dict[str, Any]) -> list[str]:
    def value(given: Any) -> str:
        return str(given).lower() if isinstance(given, bool) else repr(given).replace("'", '"')

    tables = {key: given for key, given in entry.items() if isinstance(given, dict)}
    lines = [f"[models.{name}]"]
    lines += [f"{key} = {value(given)}" for key, given in entry.items() if key not in tables]
    for table, rows in tables.items():
        lines += [f"[models.{name}.{table}]", *(f"{key} = {value(given)}" for key, given in rows.items())]
    return lines


def _pipeline(model: CardModel, widen: dict[str, Callable[[Any], Any]]) -> Any:
    import tiny_pipelines
    import torch

    if model.pipeline == "DynamiCrafterPipeline":
        from app.pipelines.dynamicrafter import build_tiny_pipeline

        return build_tiny_pipeline(512)
    assert model.pipeline is not None
    pipe = tiny_pipelines.build(model.pipeline)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        for name, widened in widen.items():
            setattr(pipe, name, widened(getattr(pipe, name)).eval().requires_grad_(False))
    return pipe


def _layers_of_text_encoder(layers: int, width: int) -> Callable[[Any], Any]:
    def widened(encoder: Any) -> Any:
        config = copy.deepcopy(encoder.config)
        config.num_layers, config.d_ff = layers, width
        return type(encoder)(config)

    return widened


def _denoiser(**changes: Any) -> Callable[[Any], Any]:
    return lambda denoiser: type(denoiser).from_config({**denoiser.config, **changes})


# LTX takes 38 and 19 MiB for 9.5 and 4 GB. Wan's transformer takes 322 MiB, more than three cards have.
WIDENED: dict[str, dict[str, Callable[[Any], Any]]] = {
    "ltx": {
        "text_encoder": _layers_of_text_encoder(8, 26_000),
        "transformer": _denoiser(num_layers=8, attention_head_dim=96, cross_attention_dim=192),
    },
    "wan": {
        "text_encoder": _layers_of_text_encoder(8, 8_000),
        "transformer": _denoiser(num_layers=20, ffn_dim=86_000),
    },
    "hunyuan": {"transformer": _denoiser(num_layers=4, num_single_layers=4, num_attention_heads=12)},
}
