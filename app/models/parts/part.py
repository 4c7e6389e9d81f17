"""One component that comes from a file or folder of its own: what it is, and why it cannot be loaded.

Reads headers, no weights, and imports neither torch nor diffusers.
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from app.models.files.architectures.number_format import COMPANION
from app.models.files.header import read_header
from app.models.files.stored import DamagedFile, StoredTensor, WeightsHeader
from app.models.unavailable import ModelUnavailable

# GGUF's types that diffusers computes with (`SUPPORTED_GGUF_QUANT_TYPES` of its GGUF quantizer, and floats).
GGUF_TYPES = frozenset(
    {
        *("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"),
        *("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS"),
    }
)
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
# Names beside a scaled weight `x.weight`: its scale under the names of ComfyUI and ModelOpt, and what only a
# multiplication in fp8 would use.
SCALES = (".scale_weight", ".weight_scale")
_UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
_MARKER = "scaled_fp8"


@dataclass(frozen=True, slots=True)
class Part:
    """The file or folder of one component, and the dtype in which it computes.

    `header` is None for a folder in diffusers' or transformers' format.
    """

    name: str
    path: Path
    header: WeightsHeader | None
    dtype: str

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.header is not None and self.header.format == "gguf"

    @property
    def label(self) -> str:
        """The format for people, such as `GGUF Q4_K` or `fp8, scaled`."""
        if self.header is None:
            return "folder"
        dtype = next(iter(self.header.bytes_by_dtype), "empty")
        if self.is_gguf:
            return f"GGUF {dtype}"
        if dtype in FP8:
            return f"fp8 {dtype[3:].lower()}{', scaled' if scales_of(self.header) else ''}"
        return f"safetensors {dtype}"


def open_part(name: str, path: Path, dtype: str) -> Part:
    """The component `name` from `path`. Raises `ModelUnavailable` if it can be seen not to load."""
    try:
        if path.is_dir():
            return Part(name, path, None, dtype)
        if not path.is_file():
            raise ModelUnavailable(
                f"its {name} {path} does not exist: correct the entry, or put the file there"
            )
        stat = path.stat()
        header = _read(path, stat.st_size, stat.st_mtime_ns)
    except DamagedFile as error:
        raise ModelUnavailable(f"its {name} {path} {error}") from None
    except OSError as error:
        may_pass = not isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError)
        reason = error.strerror or str(error)
        raise ModelUnavailable(f"its {name} {path} cannot be read: {reason}", transient=may_pass) from None
    part = Part(name, path, header, dtype)
    why = _gguf_fault(name, header) if part.is_gguf else _safetensors_fault(header)
    if why is not None:
        raise ModelUnavailable(f"its {name} {path} {why}")
    return part


@lru_cache(maxsize=32)
def _read(path: Path, _size: int, _modified_ns: int) -> WeightsHeader:
    """The file's header, read once: models are checked every few seconds, and a header may have megabytes."""
    return read_header(path)


def scales_of(header: WeightsHeader) -> dict[str, str]:
    """For each scaled weight's name, the name of its scale."""
    found = {}
    for name in header.tensors:
        for suffix in SCALES:
            if name.endswith(suffix) and name.removesuffix(suffix) + ".weight" in header.tensors:
                found[name.removesuffix(suffix) + ".weight"] = name
    return found


def is_weight(name: str) -> bool:
    """Whether a name in a safetensors file is a tensor of the model, not an accessory of its format."""
    return not name.endswith((*SCALES, *_UNUSED)) and name.rpartition(".")[2] != _MARKER


def _gguf_fault(name: str, header: WeightsHeader) -> str | None:
    if name not in ("transformer", "transformer_2", "text_encoder"):
        return f"is GGUF, which is loaded for transformers and text encoders: get the {name} as safetensors"
    if importlib.util.find_spec("gguf") is None:
        return "is GGUF, and the library for it is missing: pip install 'framefit[gguf]'"
    if name == "text_encoder":
        return None
    for tensor_name, tensor in header.tensors.items():
        if tensor.dtype not in GGUF_TYPES:
            return f"has {tensor_name} in {tensor.dtype}, which diffusers cannot load: use Q8_0, Q6_K or Q4_K"
    return None


def _safetensors_fault(header: WeightsHeader) -> str | None:
    scaled = scales_of(header)
    for weight, scale in scaled.items():
        why = _scale_fault(weight, header.tensors[weight], header.tensors[scale])
        if why is not None:
            return why
    for name in header.tensors:
        if is_weight(name) and COMPANION.search(name):
            return (
                f"has {name}, which quantizes a weight in a way that cannot be loaded: use fp8 with one "
                "scale for each tensor (scale_weight or weight_scale), GGUF or bf16"
            )
    for name, tensor in header.tensors.items():
        small = tensor.dtype in ("U8", "I8") and name.endswith(".weight")
        packed = small or tensor.dtype in ("F4", "F8_E8M0")
        if packed and is_weight(name):
            return (
                f"has {name} in {tensor.dtype}, packed in a way that cannot be loaded: use fp8, GGUF or bf16"
            )
    return None


def _scale_fault(name: str, weight: StoredTensor, scale: StoredTensor) -> str | None:
    if weight.dtype not in FP8:
        return f"has a scale for {name}, which is {weight.dtype}: of scaled formats only fp8 can be loaded"
    if scale.elements != 1 or scale.dtype not in _FLOATS:
        shape = "x".join(map(str, scale.shape)) or "1"
        return (
            f"has a scale of {shape} values in {scale.dtype} for {name}: "
            "fp8 can be loaded with one scale for each tensor"
        )
    return None
