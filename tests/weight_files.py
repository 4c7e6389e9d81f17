"""Files of weights as people have them, written from a module's weights: GGUF, fp8, names of three layouts.

Each writer returns the weights that the file holds, in float32 and under the module's names: what a loader of
the file must compute with.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
K_BLOCK = 256
# From diffusers' names to those of the models' authors: the inverse of diffusers' converters.
ORIGINAL = {
    "LTXVideoTransformer3DModel": [
        (r"^proj_in\.", "patchify_proj."),
        (r"^time_embed\.", "adaln_single."),
        (r"norm_q", "q_norm"),
        (r"norm_k", "k_norm"),
    ],
    "WanTransformer3DModel": [
        (r"^scale_shift_table$", "head.modulation"),
        (r"scale_shift_table$", "modulation"),
        (r"^proj_out", "head.head"),
        (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
        (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
        (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
        (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
        (r"^condition_embedder\.time_proj", "time_projection.1"),
        (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
        (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
        (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
        (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
        (r"attn1", "self_attn"),
        (r"attn2", "cross_attn"),
        (r"\.to_out\.0\.", ".o."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.add_([kv])_proj\.", r".\1_img."),
        (r"\.norm_added_k\.", ".norm_k_img."),
        (r"ffn\.net\.0\.proj", "ffn.0"),
        (r"ffn\.net\.2", "ffn.2"),
        (r"norm2\.", "norm3."),
    ],
}


def names_for(class_name: str, layout: str) -> Callable[[str], str]:
    """The name of a tensor of diffusers in the layout `diffusers`, `original` or `comfyui`."""

    def named(name: str) -> str:
        if layout == "diffusers":
            return name
        for pattern, original in ORIGINAL[class_name]:
            name = re.sub(pattern, original, name)
        return f"model.diffusion_model.{name}" if layout == "comfyui" else name

    return named


def write_gguf(
    path: Path,
    weights: Mapping[str, Tensor],
    kind: Kind,
    named: Callable[[str], str],
    architecture: str = "tiny",
) -> Tensors:
    """The matrices of whole blocks in `kind`, all else in F16 or F32, as the converters of people do.

    diffusers computes the values of blocks in float16, transformers those of T5 in float32, as the package.
    """
    writer = gguf.GGUFWriter(path, architecture)
    held: Tensors = {}
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    for name, weight in weights.items():
        values = weight.detach().float().contiguous().numpy()
        quantized = weight.ndim == 2 and weight.shape[1] % block == 0 and kind not in (Kind.F16, Kind.F32)
        if not quantized:
            small = values.astype(np.float16) if weight.ndim == 2 else values
            writer.add_tensor(named(name), small)
            held[name] = torch.from_numpy(small.astype(np.float32))
            continue
        blocks = _k_blocks(values) if kind == Kind.Q4_K else gguf.quants.quantize(values, kind)
        writer.add_tensor(named(name), blocks, raw_dtype=kind)
        exact = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
        held[name] = exact if architecture == "t5encoder" else _as_diffusers_rounds(blocks, kind, exact)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def write_safetensors(path: Path, weights: Mapping[str, Tensor], named: Callable[[str], str]) -> Tensors:
    """The weights as they are."""
    save_file({named(name): weight.detach().clone() for name, weight in weights.items()}, path)
    return {name: weight.detach().float() for name, weight in weights.items()}


def write_fp8(
    path: Path,
    weights: Mapping[str, Tensor],
    named: Callable[[str], str],
    *,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale_name: str | None = None,
) -> Tensors:
    """The matrices in fp8. With `scale_name` each has a scale of that name beside it, as in ComfyUI."""
    stored: Tensors = {}
    held: Tensors = {}
    for name, weight in weights.items():
        weight = weight.detach().float()
        if weight.ndim != 2 or not name.endswith(".weight"):
            stored[named(name)] = weight.clone()
            held[name] = weight
            continue
        scale = weight.abs().max() / torch.finfo(dtype).max if scale_name else torch.tensor(1.0)
        small = (weight / scale).to(dtype)
        stored[named(name)] = small
        held[name] = small.float() * scale
        layer = named(name).removesuffix(".weight")
        if scale_name == "scale_weight":
            stored[f"{layer}.scale_weight"] = scale.reshape(1)
            stored[f"{layer}.scale_input"] = torch.tensor([1.0])
        elif scale_name == "weight_scale":
            stored[f"{layer}.weight_scale"] = scale
            note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
            stored[f"{layer}.comfy_quant"] = note
    if scale_name == "scale_weight":
        stored[named("scaled_fp8")] = torch.zeros(2, dtype=dtype)
    save_file(stored, path)
    return held


def _k_blocks(values: np.ndarray) -> np.ndarray:
    """Valid Q4_K blocks of about the values' size: the package reads them but does not write them.

    A block of 256: two float16 (the scale of scales, and of minima), 12 bytes of 6-bit scales and minima, 128
    bytes of 4-bit values.
    """
    rows, columns = values.shape
    count = rows * columns // K_BLOCK
    random = np.random.default_rng(count)
    blocks = np.empty((count, 144), np.uint8)
    sizes = random.uniform(0.5, 1.0, (count, 2)) * np.abs(values).max() * [1 / (31 * 15), 1 / (31 * 2)]
    blocks[:, :4] = sizes.astype(np.float16).view(np.uint8)
    blocks[:, 4:] = random.integers(0, 256, (count, 140), dtype=np.uint8)
    return blocks.reshape(rows, columns // K_BLOCK * 144)


def _as_diffusers_rounds(blocks: np.ndarray, kind: Kind, exact: Tensor) -> Tensor:
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    values: Tensor = dequantize_gguf_tensor(GGUFParameter(torch.from_numpy(blocks), quant_type=kind)).float()
    assert (values - exact).abs().max() <= 4e-3 * exact.abs().max()
    return values


def write_hole(path: Path, forms: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """A safetensors file of real size with a header and a hole in place of the tensors' bytes."""
    width = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
    header, end = {}, 0
    for name, (dtype, shape) in forms.items():
        begin, end = end, end + math.prod(shape) * width[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_gguf_hole(path: Path, forms: Mapping[str, tuple[Kind, tuple[int, ...]]]) -> None:
    """The same as GGUF."""
    writer = gguf.GGUFWriter(path, "tiny")
    size = 0
    for name, (kind, shape) in forms.items():
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        count = math.prod(shape) // block * block_bytes
        plain = {Kind.F32: np.float32, Kind.F16: np.float16}.get(kind)
        rows = shape if plain else (*shape[:-1], shape[-1] // block * block_bytes)
        raw = None if plain else kind
        writer.add_tensor_info(name, rows, np.dtype(plain or np.uint8), count, raw_dtype=raw)
        size += math.ceil(count / 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 32 + size)
