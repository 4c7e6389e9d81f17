"""A component made of a file's tensors: diffusers' loader for GGUF, and the same steps for safetensors.

diffusers' loader of single files casts all of a safetensors file to one dtype. A component assembled here
keeps fp8 weights, and keeps in float32 what its class wants so, as one loaded from a folder does.
"""

import importlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from adaptive.device.out_of_memory import is_out_of_memory
from app.models.parts.checkpoint import (
    Tensors,
    check_text_encoder,
    gguf_library,
    is_quantized,
    read_tensors,
    under_own_names,
)
from app.models.parts.part import Part
from app.models.parts.scaled import Fp8Linear, dequantized, plain, scale_of
from app.models.unavailable import ModelUnavailable

# What the libraries' loaders raise over files that they cannot read, or whose form needs a missing library.
_ERRORS = (OSError, ValueError, RuntimeError, ImportError, AttributeError, SafetensorError)
_FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def load_part(library: str, class_name: str, config: Mapping[str, Any], part: Part) -> Any:
    """The component with its weights, on the CPU.

    Its class and configuration are those of the model's base. Raises `ModelUnavailable`.
    """
    loaded_class = _class(library, class_name)
    dtype = _torch_dtype(part)
    with _explained(part):
        if part.header is None:
            return loaded_class.from_pretrained(str(part.path), dtype=dtype, local_files_only=True).eval()
        if part.is_gguf and library == "transformers":
            return _dequantized_text_encoder(loaded_class, config, part, dtype)
        return _assembled(library, class_name, config, part, read_tensors(part))


def described(library: str, class_name: str, config: Mapping[str, Any], part: Part) -> Any:
    """The component as `load_part` makes it, on the meta device: layers, dtypes and bytes without data."""
    with _explained(part):
        if part.is_gguf and library == "transformers":
            with torch.device("meta"):
                bare = _bare(library, class_name, config)
            check_text_encoder(part, bare)
            return torch.nn.Module.to(bare, _torch_dtype(part))
        tensors = read_tensors(part, described=True)
        with torch.device("cpu"):  # whatever default the caller has set
            module = _assembled(library, class_name, config, part, tensors)
        return torch.nn.Module.to(module, "meta")


@contextmanager
def _explained(part: Part) -> Iterator[None]:
    """Turn what the libraries' loaders raise over a file into `ModelUnavailable`; not out-of-memory."""
    try:
        yield
    except _ERRORS as error:
        if is_out_of_memory(error):
            raise
        why = str(error) or type(error).__name__
        raise ModelUnavailable(f"its {part.name} {part.path} cannot be loaded: {why}") from error


def _assembled(
    library: str, class_name: str, config: Mapping[str, Any], part: Part, tensors: Tensors
) -> torch.nn.Module:
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):  # buffers that are in no file are computed
        module: torch.nn.Module = _bare(library, class_name, config)
    dtype = _torch_dtype(part)
    own = under_own_names(part, tensors, module, class_name, config)
    del tensors
    if part.is_gguf:
        return _with_gguf(module, own, config, dtype)
    kept = _kept_in_float32(module, library, dtype)
    for name in list(own):
        tensor = own.pop(name)
        in_float32 = bool(kept & set(name.split(".")))
        target = torch.float32 if in_float32 else dtype
        may_stay = not in_float32 and part.name != "vae"  # a VAE is small, and decodes with layers of its own
        if tensor.dtype in _FP8_DTYPES and may_stay and _is_linear_weight(module, name):
            own[name] = tensor
        elif tensor.dtype in _FP8_DTYPES:
            own[name] = dequantized(tensor, scale_of(tensor), target)
        else:
            own[name] = plain(tensor).to(target) if tensor.is_floating_point() else tensor
    _replace_fp8(module, own, dtype)
    module.load_state_dict(own, assign=True, strict=False)
    tie_weights: Any = getattr(module, "tie_weights", None)
    if tie_weights is not None:
        tie_weights()
    return module.eval().requires_grad_(False)


def _with_gguf(
    module: torch.nn.Module, tensors: Tensors, config: Mapping[str, Any], dtype: torch.dtype
) -> torch.nn.Module:
    """`module`'s class with GGUF tensors, loaded by diffusers under the names of the class."""
    utils = gguf_library()
    from diffusers import GGUFQuantizationConfig

    for name, tensor in tensors.items():
        if is_quantized(tensor) and not _is_linear_weight(module, name):  # only linear layers dequantize
            tensors[name] = utils.dequantize_gguf_tensor(tensor).to(dtype)
    device = next(iter(tensors.values())).device
    loaded_class: Any = type(module)
    with _config_folder(config) as folder:
        loaded: torch.nn.Module = loaded_class.from_single_file(
            tensors,
            config=folder,
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            dtype=dtype,
            device=device.type,
            local_files_only=True,
        )
    return loaded


def _dequantized_text_encoder(
    loaded_class: Any, config: Mapping[str, Any], part: Part, dtype: torch.dtype
) -> Any:
    """transformers' loader dequantizes the whole file."""
    module, found = loaded_class.from_pretrained(
        str(part.path.parent),
        gguf_file=part.path.name,
        config=loaded_class.config_class(**_plain_config(config)),
        dtype=dtype,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelUnavailable(
            f"its {part.name} {part.path} is no {loaded_class.__name__} as its base is: {len(missing)} "
            f"tensors are missing, such as {', '.join(missing[:3])}"
        )
    return module.eval()


def _is_linear_weight(module: torch.nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(module.get_submodule(owner), torch.nn.Linear)


def _replace_fp8(module: torch.nn.Module, tensors: Tensors, dtype: torch.dtype) -> None:
    """Put layers that compute with fp8 weights in place of those whose weights are fp8 in `tensors`."""
    for name in [name for name, tensor in tensors.items() if tensor.dtype in _FP8_DTYPES]:
        owner = name.removesuffix(".weight")
        weight = tensors.pop(name)
        layer = Fp8Linear(weight, tensors.pop(f"{owner}.bias", None), dtype, scale_of(weight))
        parent, _, leaf = owner.rpartition(".")
        setattr(module.get_submodule(parent), leaf, layer)


def _kept_in_float32(module: torch.nn.Module, library: str, dtype: torch.dtype) -> set[str]:
    """Parts of names whose tensors the class wants in float32, as the library's own loader keeps them."""
    names = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if library == "transformers":
        names = names if dtype == torch.float16 else set()
        names |= set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    return names


def _bare(library: str, class_name: str, config: Mapping[str, Any]) -> Any:
    module_class = _class(library, class_name)
    if library == "transformers":
        return module_class(module_class.config_class(**_plain_config(config)))
    return module_class.from_config(_plain_config(config))


def _class(library: str, class_name: str) -> Any:
    return getattr(importlib.import_module(library), class_name)


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _torch_dtype(part: Part) -> torch.dtype:
    found: torch.dtype = getattr(torch, part.dtype)
    return found


@contextmanager
def _config_folder(config: Mapping[str, Any]) -> Iterator[str]:
    """A folder with the configuration, which keeps diffusers from asking the hub for one."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_plain_config(config)), encoding="utf-8")
        yield folder
