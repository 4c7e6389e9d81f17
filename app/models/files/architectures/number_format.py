"""In what form a file stores its weights, and the weights themselves without the tensors that serve the form.

A quantized weight is stored with scales, maps and marks beside it. Where they lie:

- ComfyUI's fp8: `X.scale_weight` and the mark `scaled_fp8`, or `X.weight_scale` with `X.comfy_quant` or with
  `_quantization_metadata` in the metadata
- bitsandbytes: `X.weight.absmax`, `X.weight.quant_state.bitsandbytes__nf4`, `X.SCB`
- torchao: `X._weight_qdata`, `X._weight_scale`, and `tensor_names` in the metadata
- GGUF: within the blocks of the tensor
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from app.models.files.stored import StoredTensor, WeightsHeader

_MARKS = frozenset({"scaled_fp8", "spiece_model", "tekken_model"})
COMPANION = re.compile(
    r"\.(scale_weight|scale_input|weight_scale(_2|_inv)?|input_scale|comfy_quant|SCB|weight_format"
    r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)"
    r"|_weight_(scale|zero_point)(_and_zero_point)?)$"
)
_COMFYUI_METADATA = "_quantization_metadata"
_TORCHAO = re.compile(r"^(.*\.)_(\w+)_qdata$")
_TORCHAO_DTYPES = ("I8", "U8", "I32", "F8_E4M3")
# Values of four bits in one element of the dtype that packs them.
_FOUR_BIT_VALUES = {"U8": 2, "I8": 2, "I32": 8}
_PLAIN = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8 e4m3", "F8_E5M2": "fp8 e5m2"}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight by its name in the model. `packed`: its shape in the file is not that of its values."""

    tensor: StoredTensor
    shape: tuple[int, ...]
    packed: bool
    values_per_element: int = 1

    @property
    def elements(self) -> int:
        """How many values it has."""
        return self.tensor.elements * self.values_per_element

    def has_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether it can have this shape in the model."""
        if self.shape == shape:
            return True
        wanted = 1
        for side in shape:
            wanted *= side
        return self.packed and self.elements == wanted


def weights_of(header: WeightsHeader) -> dict[str, StoredWeight]:
    """The weights by name, without scales, maps and marks."""
    four_bit = {
        name.partition(".weight.quant_state.")[0] + ".weight"
        for name in header.tensors
        if ".weight.quant_state." in name
    }
    found = {}
    for name, tensor in header.tensors.items():
        if name in _MARKS or COMPANION.search(name):
            continue
        torchao = _TORCHAO.match(name)
        own = torchao[1] + torchao[2] if torchao else name
        original = header.metadata.get(f"comfy.gguf.orig_shape.{name}")
        shape = tuple(original) if isinstance(original, list) else tensor.shape
        is_four_bit = name in four_bit or f"{name}_scale_2" in header.tensors
        if torchao is not None:
            is_four_bit = "Int4" in str(header.metadata.get(own))
        packed = header.format == "gguf" or tensor.dtype in ("U8", "I8", "F4") or torchao is not None
        found[own] = StoredWeight(
            tensor, shape, packed, _FOUR_BIT_VALUES.get(tensor.dtype, 1) if is_four_bit else 1
        )
    return found


def form_of(header: WeightsHeader, tensors: Mapping[str, StoredTensor]) -> str:
    """The form of these tensors, scales included, such as "bf16", "fp8 e4m3, scaled" or "GGUF Q4_K"."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
    main = max(sizes, key=lambda dtype: sizes[dtype], default="")
    if header.format == "gguf":
        return f"GGUF {main}"
    return (
        _quantized(tensors, scaled_mark="scaled_fp8" in header.tensors, main=main)
        or ("torchao" if "tensor_names" in header.metadata and main in _TORCHAO_DTYPES else "")
        or _PLAIN.get(main, main)
    )


def declared_formats(header: WeightsHeader) -> dict[str, int]:
    """How many layers ComfyUI's metadata says to be in each format; empty without them."""
    try:
        layers = json.loads(header.metadata.get(_COMFYUI_METADATA, "{}"))["layers"].values()
        return dict(Counter(str(layer["format"]) for layer in layers))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _quantized(tensors: Mapping[str, StoredTensor], *, scaled_mark: bool, main: str) -> str:
    endings = {name.rpartition(".")[2] for name in tensors}
    if any(ending.startswith("bitsandbytes__") for ending in endings):
        named = min(ending for ending in endings if ending.startswith("bitsandbytes__"))
        return f"bitsandbytes {re.sub(r'[^a-z0-9]', '?', named[14:22]).upper()}"
    if "SCB" in endings:
        return "bitsandbytes int8"
    if "weight_scale_2" in endings and main == "U8":
        return "nvfp4"
    scaled = endings & {"scale_weight", "weight_scale"} or scaled_mark
    if scaled and main in ("F8_E4M3", "F8_E5M2"):
        return f"{_PLAIN[main]}, scaled"
    if scaled and main == "I8":
        return "int8, scaled"
    return ""
