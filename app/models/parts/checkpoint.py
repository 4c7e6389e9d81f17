"""A file's tensors under the names of the component's class, with their data or only described by the header.

Files have diffusers' own names, those of the model's authors, or either below a prefix of ComfyUI. diffusers'
converters of single files rename and cut; they do so to tensors on the meta device as well.
"""

from collections.abc import Container, Mapping, Set
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from app.models.files.architectures.table import ARCHITECTURES
from app.models.files.gguf import TYPES
from app.models.files.stored import StoredTensor
from app.models.parts.part import Part, is_weight, scales_of
from app.models.parts.scaled import ScaledTensor
from app.models.unavailable import ModelUnavailable

Tensors = dict[str, torch.Tensor]
Shape = tuple[int, ...]
# What ComfyUI and the authors' training code put before all names of a component. A file may hold several.
_PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "transformer_2": ("model.diffusion_model.", "diffusion_model."),
    "vae": ("first_stage_model.", "vae."),
}
# Parts of names of what files of encoders hold beside them: decoders, the model's other half, tokenizers, and
# buffers that older versions of transformers saved.
_BUFFERS = ("position_ids", "inv_freq", "logit_scale", "spiece_model", "tekken_model")
_BESIDE = {
    "text_encoder": frozenset(
        {"decoder", "lm_head", "text_projection", "multi_modal_projector", *_BUFFERS}
        | {"visual", "visual_projection", "vision_model", "vision_tower"}
    ),
    "image_encoder": frozenset({"text_model", "text_projection", "head", "post_layernorm", *_BUFFERS}),
}
_BESIDE_GGUF = ("dec.", "output.", "rope_freqs.")
# The names of a model's parts in transformers, which versions of the library keep or leave out.
_OWNERS = ("vision_model.", "text_model.", "language_model.", "model.", "transformer.")
_SHOWN = 3
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_tensors(part: Part, *, described: bool = False) -> Tensors:
    """The file's tensors under its own names; `described`: on the meta device, read from the header alone.

    Quantized tensors of GGUF are diffusers' `GGUFParameter`, scaled fp8 tensors `ScaledTensor`. Raises
    `OSError` if the file cannot be read any more.
    """
    assert part.header is not None
    if part.is_gguf:
        return _described_gguf(part.header.tensors) if described else _read_gguf(part.path)
    scales = scales_of(part.header)
    if described:
        tensors = {
            name: torch.empty(each.shape, dtype=_dtype(part, name, each.dtype), device="meta")
            for name, each in part.header.tensors.items()
            if is_weight(name)
        }
        return tensors | {name: ScaledTensor.of(tensors[name], 1.0) for name in scales}
    from safetensors.torch import load_file

    tensors = load_file(part.path)
    for name, scale in scales.items():
        tensors[name] = ScaledTensor.of(tensors[name], float(tensors[scale]))
    return {name: tensor for name, tensor in tensors.items() if is_weight(name)}


def under_own_names(
    part: Part, tensors: Tensors, module: torch.nn.Module, class_name: str, config: Mapping[str, Any]
) -> Tensors:
    """The tensors that `module` has, under its names.

    `module` is of the component's class, on any device. Raises `ModelUnavailable` if tensors are missing or
    have other shapes.
    """
    wanted = {
        name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, torch.Tensor)
    }
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    needed = wanted.keys() - tied.keys()
    tensors = _without_prefix(tensors, part.name)
    if not needed <= tensors.keys():
        tensors = _converted(part, tensors, class_name, config)
    if not needed <= tensors.keys():
        tensors = _without_owner(tensors, needed)
    given = {name: _shape(each) for name, each in tensors.items() if name in wanted}
    _check_shapes(part, class_name, {name: tuple(each.shape) for name, each in wanted.items()}, given, tied)
    _check_extra(part, class_name, tensors.keys() - wanted.keys())
    for name, tensor in tensors.items():
        if name in wanted and wanted[name].is_floating_point() and not _has_floats(tensor):
            raise ModelUnavailable(
                f"its {part.name} {part.path} has {name} in {tensor.dtype}, and {class_name} computes with "
                "floating-point numbers: use fp8, GGUF or bf16"
            )
    return {name: tensors[name] for name in wanted if name in tensors}


def check_text_encoder(part: Part, module: Any) -> None:
    """Raise `ModelUnavailable` if a GGUF file has not the tensors of `module`, a class of transformers.

    llama.cpp has names of its own, which transformers maps for some classes.
    """
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    assert part.header is not None
    class_name = type(module).__name__
    try:
        names = get_gguf_hf_weights_map(module, TensorProcessor())
    except (NotImplementedError, AttributeError):
        raise ModelUnavailable(
            f"its {part.name} {part.path} is GGUF, which transformers does not load as a {class_name}: GGUF "
            f"is loaded for T5 and UMT5; get the {part.name} as safetensors"
        ) from None
    wanted = {name: tuple(each.shape) for name, each in module.state_dict().items()}
    wanted = {name: shape for name, shape in wanted.items() if name in names.values()}
    stored = part.header.tensors
    given = {name: stored[theirs].shape for theirs, name in names.items() if theirs in stored}
    _check_shapes(part, class_name, wanted, given, getattr(module, "all_tied_weights_keys", {}))
    extra = {name for name in stored.keys() - names.keys() if not name.startswith(_BESIDE_GGUF)}
    _check_extra(part, class_name, extra)


def _check_shapes(
    part: Part, class_name: str, wanted: Mapping[str, Shape], given: Mapping[str, Shape], tied: Container[str]
) -> None:
    missing = [name for name in wanted if name not in given and name not in tied]
    if missing:
        raise ModelUnavailable(
            f"its {part.name} {part.path} is no {class_name} as its base is: {len(missing)} of {len(wanted)} "
            f"tensors are missing, such as {', '.join(missing[:_SHOWN])}"
        )
    for name, shape in given.items():
        if shape != wanted[name]:
            raise ModelUnavailable(
                f"its {part.name} {part.path} belongs to another size of {class_name} than its base: "
                f"{name} has shape {shape}, the base {wanted[name]}"
            )


def _check_extra(part: Part, class_name: str, extra: Set[str]) -> None:
    """Raise `ModelUnavailable` for tensors that the class does not have, other than a known model's.

    A model with more layers, or with inputs of its own, would otherwise be loaded without them.
    """
    known = [
        pattern
        for each in ARCHITECTURES
        if each.component == part.name.removesuffix("_2") and each.class_name == class_name
        for pattern in each.optional
    ]
    beside = _BESIDE.get(part.name, frozenset())
    unknown = sorted(
        name
        for name in extra
        if not beside & set(name.split(".")) and not any(fnmatchcase(name, pattern) for pattern in known)
    )
    if unknown:
        raise ModelUnavailable(
            f"its {part.name} {part.path} belongs to another model than its base: {class_name} as its base "
            f"is has no place for {len(unknown)} of its tensors, such as {', '.join(unknown[:_SHOWN])}"
        )


def _has_floats(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or is_quantized(tensor)


def is_quantized(tensor: torch.Tensor) -> bool:
    """Whether the tensor's bytes are blocks of GGUF."""
    return hasattr(tensor, "quant_type")


def gguf_library() -> Any:
    """diffusers' module of GGUF tensors, its kernels off: they would be downloaded from the hub as code."""
    import os

    os.environ["DIFFUSERS_GGUF_CUDA_KERNELS"] = "false"  # read when the module is imported
    from diffusers.quantizers.gguf import utils

    utils.ops = None
    return utils


def _read_gguf(path: Path) -> Tensors:
    gguf_library()
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    tensors: Tensors = load_gguf_checkpoint(str(path))
    return tensors


def _described_gguf(stored: Mapping[str, StoredTensor]) -> Tensors:
    import gguf

    parameter = gguf_library().GGUFParameter
    by_name = {name: (block, size) for name, block, size in TYPES.values()}
    tensors: Tensors = {}
    for name, each in stored.items():
        if each.dtype in ("F32", "F16"):
            tensors[name] = torch.empty(each.shape, dtype=_DTYPES[each.dtype], device="meta")
            continue
        block, size = by_name[each.dtype]
        shape = (*each.shape[:-1], each.shape[-1] // block * size)
        data = torch.empty(shape, dtype=torch.uint8, device="meta")
        tensors[name] = parameter(data, quant_type=gguf.GGMLQuantizationType[each.dtype])
    return tensors


def _dtype(part: Part, name: str, stored: str) -> torch.dtype:
    if stored not in _DTYPES:
        raise ModelUnavailable(f"its {part.name} {part.path} has {name} in {stored}, which cannot be loaded")
    return _DTYPES[stored]


def _without_prefix(tensors: Tensors, component: str) -> Tensors:
    """The component's tensors: those below a prefix if there are any, else all."""
    for prefix in _PREFIXES.get(component, ()):
        inner = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
        if inner:
            return inner
    return tensors


def _without_owner(tensors: Tensors, needed: Set[str]) -> Tensors:
    for owner in _OWNERS:
        shorter = {name.removeprefix(owner): each for name, each in tensors.items()}
        if needed <= shorter.keys():
            return shorter
    return tensors


def _converted(part: Part, tensors: Tensors, class_name: str, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    known = SINGLE_FILE_LOADABLE_CLASSES.get(class_name)
    if known is None:  # transformers' classes, and those that authors publish in diffusers' format
        return tensors
    if class_name.startswith("AutoencoderKLLTX"):  # their converters take tensors below this prefix only
        tensors = {f"vae.{name}": each for name, each in tensors.items()}
    try:
        converted: Tensors = known["checkpoint_mapping_fn"](checkpoint=dict(tensors), config=dict(config))
    except (KeyError, IndexError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise ModelUnavailable(
            f"its {part.name} {part.path} is no {class_name}: its tensors cannot be brought into diffusers' "
            f"names ({type(error).__name__}: {error})"
        ) from None
    return converted


def _shape(tensor: torch.Tensor) -> Shape:
    shape: Shape = getattr(tensor, "quant_shape", tensor.shape)
    return tuple(shape)
