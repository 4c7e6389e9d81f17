"""Files of weights of true size whose bytes do not exist: a real header, and a hole for the tensors.

The names and shapes are those of published models (`weight_keys.py` makes the lists).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy

from app.models.files.architectures.key_lists import key_lists

_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "U8": 1, "I8": 1}
Tensors = dict[str, tuple[str, tuple[int, ...]]]


def tensors_of(keys: str, layout: str = "original", dtype: str = "BF16", prefix: str = "") -> Tensors:
    """Dtype and shape of each tensor of a list, with matrices in `dtype` and the rest in 16 bits or more."""
    small = dtype if dtype in ("F32", "F16", "BF16") else "BF16"
    return {
        prefix + name: (dtype if _is_matrix(name, shape) else small, shape)
        for name, shape in key_lists()[keys][layout].items()
    }


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.endswith(".weight")


def scaled_fp8(tensors: Tensors, style: str) -> Tensors:
    """Adds the scales of ComfyUI's fp8 files, in its earlier style (`scale_weight`) or its later one."""
    made = dict(tensors)
    for name, (dtype, _) in tensors.items():
        if dtype != "F8_E4M3":
            continue
        layer = name.removesuffix(".weight")
        if style == "scale_weight":
            made[f"{layer}.scale_weight"] = ("F32", (1,))
        else:
            made[f"{layer}.weight_scale"] = ("F32", ())
            made[f"{layer}.comfy_quant"] = ("U8", (27,))
    if style == "scale_weight":
        made["scaled_fp8"] = ("F8_E4M3", (2,))
    return made


def nf4(tensors: Tensors) -> Tensors:
    """The matrices as bitsandbytes stores them in NF4 with nested scales."""
    made: Tensors = {}
    for name, (dtype, shape) in tensors.items():
        if len(shape) != 2 or not name.endswith(".weight"):
            made[name] = (dtype, shape)
            continue
        values = math.prod(shape)
        made[name] = ("U8", (values // 2, 1))
        made[f"{name}.absmax"] = ("U8", (math.ceil(values / 64),))
        made[f"{name}.quant_map"] = ("F32", (16,))
        made[f"{name}.nested_absmax"] = ("F32", (math.ceil(values / 64 / 256),))
        made[f"{name}.nested_quant_map"] = ("F32", (256,))
        made[f"{name}.quant_state.bitsandbytes__nf4"] = ("U8", (120,))
    return made


def torchao_int8(tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
    """The matrices as torchao's int8 tensors are flattened for safetensors, and the metadata."""
    made: Tensors = {}
    for name, (dtype, shape) in tensors.items():
        if len(shape) != 2 or not name.endswith(".weight"):
            made[name] = (dtype, shape)
            continue
        layer = name.removesuffix("weight")
        made[f"{layer}_weight_qdata"] = ("I8", shape)
        made[f"{layer}_weight_scale"] = ("BF16", (shape[0], 1))
    return made, {"tensor_names": json.dumps(list(tensors))}


def write_safetensors(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file of true size without bytes for its tensors."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return path


def write_gguf(path: Path, tensors: Tensors, architecture: str, quant: str) -> Path:
    """A GGUF file of true size, its matrices of type `quant`, as the converters of ComfyUI write them."""
    writer = gguf.GGUFWriter(path, architecture)
    wanted = gguf.GGMLQuantizationType[quant]
    for name, (_, shape) in tensors.items():
        whole = _is_matrix(name, shape) and shape[1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0
        kind = wanted if whole else gguf.GGMLQuantizationType.F32
        stored = shape
        if len(shape) > 4:  # more than the format has
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
            stored = (shape[0], math.prod(shape[1:]))
        elif not shape:
            stored = (1,)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        in_bytes = (*stored[:-1], stored[-1] // block * size)
        writer.add_tensor_info(name, in_bytes, numpy.dtype(numpy.uint8), math.prod(in_bytes), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    alignment, position = 32, path.stat().st_size
    data = sum(
        math.ceil(info.nbytes / alignment) * alignment for part in writer.tensors for info in part.values()
    )
    with path.open("r+b") as file:
        file.truncate(math.ceil(position / alignment) * alignment + data)
    return path
