"""Tiny LoRA files in the key forms that people have, and the changes of weights that they stand for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from weight_files import names_for

RANK = 4
ALPHA = 2.0
STYLES = ("peft", "kohya", "comfyui")


def write_lora(
    path: Path,
    module: Any,
    style: str = "peft",
    *,
    seed: int = 0,
    only: str = r"attn|ff",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Write random matrices for the module's linear layers that match `only`.

    Returns what has to be added to each weight, by its name in the module.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors, changes = {}, {}
    for name, layer in module.named_modules():
        if not isinstance(layer, torch.nn.Linear) or not re.search(only, name):
            continue
        down = (torch.randn(RANK, layer.in_features, generator=generator) * 0.2).to(dtype)
        up = (torch.randn(layer.out_features, RANK, generator=generator) * 0.2).to(dtype)
        tensors |= _tensors(style, type(module).__name__, name, down, up)
        strength = 1.0 if style == "peft" else ALPHA / RANK
        changes[f"{name}.weight"] = strength * up.float() @ down.float()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return changes


def _tensors(style: str, class_name: str, name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    if style == "peft":
        return {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    original = names_for(class_name, "original")(f"{name}.").removesuffix(".")
    layer = f"diffusion_model.{original}"
    if style == "kohya":
        layer = f"lora_unet_{original.replace('.', '_')}"
    return {
        f"{layer}.lora_down.weight": down,
        f"{layer}.lora_up.weight": up,
        f"{layer}.alpha": torch.tensor(ALPHA),
    }


def merged(weights: dict[str, Tensor], *changes: tuple[float, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights with each of the changes added, times its scale."""
    made = dict(weights)
    for scale, change in changes:
        for name, delta in change.items():
            made[name] = made[name] + scale * delta
    return made
