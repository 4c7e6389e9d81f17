"""Reads a LoRA file and gives its matrices the names of a transformer's own layers.

Owns the key forms: those of peft and diffusers, kohya's scripts (`lora_down`, `alpha`, underscores), and
ComfyUI's and the model authors' (`diffusion_model.`, their own layer names), which diffusers' converters
translate. Must not know pipelines' hooks or placements.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from app.fields.loras import LoraChoice
from app.models.files.architectures.adapters import PREFIXES, flat
from app.models.files.architectures.key_lists import key_lists
from app.models.files.architectures.table import ARCHITECTURES
from app.worker.loras.not_applied import LoraNotApplied

log = logging.getLogger(__name__)
_LEAF = re.compile(r"^(.+)\.(?:lora_(A|B|down|up)(?:\.default)?(?:\.(weight|bias))?|(alpha)|(diff_b))$")
_LEFT_OUT = ".diff"

Matrices = dict[str, torch.Tensor]


def read_lora(lora: LoraChoice, folder: Path) -> Matrices:
    """The tensors of the job's file with peft's leaf names, alphas multiplied in.

    Raises `LoraNotApplied` if the file is not the one that the job was accepted with, or is missing.
    """
    path = folder / f"{lora.name}.safetensors"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise LoraNotApplied(
            "unknown_lora", f"LoRA {lora.name} is no longer in the folder", _data(lora)
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    if lora.sha256 not in (None, digest):
        raise LoraNotApplied(
            "lora_changed",
            f"the file of LoRA {lora.name} has changed since the job was accepted: its SHA-256 is {digest}, "
            f"not {lora.sha256}",
            {**_data(lora), "sha256": digest, "expected_sha256": lora.sha256},
        )
    return _with_alphas(load(content))


def matrices_for(module: Any, matrices: Mapping[str, torch.Tensor], pipeline_class: Any) -> Matrices | None:
    """The matrices under the names of the module's layers, in its dtype; None if its layers are others."""
    layers = {}
    for name, each in module.named_modules():
        if isinstance(each, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d) and ".lora_" not in name:
            own = name.removesuffix(".base_layer")  # of a layer that another LoRA has replaced
            layers[flat(own)] = own, each
    found = _under_names(matrices, layers)
    if found is None:
        converted = _converted(matrices, type(module).__name__, pipeline_class)
        found = None if converted is None else _under_names(converted, layers)
    if found is None:
        return None
    dtype = module.dtype if module.dtype.is_floating_point else torch.float32
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def _with_alphas(tensors: Mapping[str, torch.Tensor]) -> Matrices:
    """`lora_A` and `lora_B` in place of other names; B times alpha / rank."""
    alphas, made = {}, {}
    for name, tensor in tensors.items():
        match = _LEAF.match(name)
        if match is None:
            if not name.endswith(_LEFT_OUT):
                made[name] = tensor
            continue
        layer, side, leaf, alpha, bias = match.groups()
        if alpha:
            alphas[layer] = float(tensor)
        elif bias:
            made[f"{layer}.lora_B.bias"] = tensor
        else:
            made[f"{layer}.lora_{'A' if side in ('A', 'down') else 'B'}.{leaf or 'weight'}"] = tensor
    for layer, alpha in alphas.items():
        rows = made.get(f"{layer}.lora_A.weight")
        up = f"{layer}.lora_B.weight"
        if rows is not None and up in made and alpha != rows.shape[0]:
            made[up] = (made[up].float() * (alpha / rows.shape[0])).to(made[up].dtype)
    return made


def _under_names(
    matrices: Mapping[str, torch.Tensor], layers: Mapping[str, tuple[str, torch.nn.Module]]
) -> Matrices | None:
    """The matrices with the layers' names; None unless every one has a layer of its shape."""
    made = {}
    for key, tensor in matrices.items():
        name, _, leaf = key.rpartition(".lora_")
        layer = layers.get(flat(_bare(name)))
        if not leaf or layer is None or not _fits(layer[1], leaf, tensor):
            return None
        made[f"{layer[0]}.lora_{leaf}"] = tensor
    return made


def _fits(layer: Any, leaf: str, tensor: torch.Tensor) -> bool:
    inner = getattr(layer, "in_features", None) or layer.in_channels
    outer = getattr(layer, "out_features", None) or layer.out_channels
    given, own = (tensor.shape[1], inner) if leaf.startswith("A") else (tensor.shape[0], outer)
    return bool(given == own)


def _bare(name: str) -> str:
    changed = True
    while changed:
        before = name
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        changed = name != before
    return name


def _converted(matrices: Mapping[str, torch.Tensor], class_name: str, pipeline_class: Any) -> Matrices | None:
    """The matrices as diffusers' converter for the pipeline's class names them; None if it knows none."""
    convert = getattr(pipeline_class, "lora_state_dict", None)
    if convert is None:
        return None
    dotted = {
        flat(name.removesuffix(".weight")): name.removesuffix(".weight")
        for architecture in ARCHITECTURES
        if architecture.class_name == class_name
        for layout, names in key_lists()[architecture.keys].items()
        if layout != "diffusers"
        for name in names
    }
    original = {}
    for key, tensor in matrices.items():
        name, _, leaf = key.rpartition(".lora_")
        bare = _bare(name)
        original[f"diffusion_model.{dotted.get(flat(bare), bare)}.lora_{leaf}"] = tensor
    try:
        converted: Matrices = convert(original)
    except Exception as error:  # a converter fails in many ways over names that it does not know
        log.info("lora_not_converted class=%s reason=%s", class_name, error)
        return None
    return {key.removeprefix("transformer."): tensor for key, tensor in converted.items()}


def _data(lora: LoraChoice) -> dict[str, Any]:
    return {"name": lora.name}
