"""Files are recognised by the names and shapes of their tensors, in each key layout and number format."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import weight_keys
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_weights import (
    Tensors,
    nf4,
    scaled_fp8,
    tensors_of,
    torchao_int8,
    write_gguf,
    write_safetensors,
)

from app.config import Settings
from app.models.entries import BUILT_IN_MODELS, load_models
from app.models.files.architectures.adapters import recognise_adapter
from app.models.files.architectures.key_lists import PATH, key_lists
from app.models.files.architectures.number_format import weights_of
from app.models.files.architectures.recognition import Part, recognise
from app.models.files.architectures.table import ARCHITECTURES
from app.models.files.header import read_header
from app.models.files.stored import StoredTensor, WeightsHeader

LISTS = [(keys, layout) for keys, layouts in key_lists().items() for layout in layouts]
FP8 = tensors_of("wan-14b-i2v", dtype="F8_E4M3")


def header_of(tensors: Tensors) -> WeightsHeader:
    return WeightsHeader(
        "safetensors",
        {
            name: StoredTensor(dtype, shape, 0, 2 * math.prod(shape))
            for name, (dtype, shape) in tensors.items()
        },
        {},
    )


def only(parts: list[Part]) -> Part:
    assert len(parts) == 1
    return parts[0]


def test_the_key_lists_are_those_of_the_classes_and_of_the_inverted_converters() -> None:
    """After an update of diffusers: `python tests/weight_keys.py`."""
    assert PATH.read_text(encoding="utf-8") == weight_keys.document()


def test_each_list_has_one_record_and_each_record_a_list() -> None:
    assert sorted(each.keys for each in ARCHITECTURES) == sorted(key_lists())


def test_the_records_name_entries_that_are_shipped() -> None:
    shipped = load_models(Settings())
    named = {like for each in ARCHITECTURES for like in each.likes}
    named |= {model.like for each in ARCHITECTURES for model in each.models if model.base}
    assert named <= set(shipped)


@pytest.mark.parametrize(
    ("keys", "layout", "prefix"),
    [
        *((keys, layout, "") for keys, layout in LISTS),
        ("wan-5b", "original", "model.diffusion_model."),
        ("ltx-2b", "original", "diffusion_model."),
        ("hunyuanvideo", "comfyui", "model.model."),
        ("ltx-vae-0.9", "original", "vae."),
        ("llama-8b", "diffusers", "language_model.model."),
        ("gemma-12b", "diffusers", "model."),
        ("clip-h", "diffusers", "vision_model."),
        ("clip-l", "diffusers", "text_model."),
    ],
)
def test_a_published_list_is_recognised_as_itself_alone(keys: str, layout: str, prefix: str) -> None:
    part = only(recognise(header_of(tensors_of(keys, layout, prefix=prefix))))
    assert part.fits
    assert part.architecture is not None
    assert (part.architecture.keys, part.layout, part.prefix) == (keys, layout, prefix)


@pytest.mark.parametrize(
    ("tensors", "form", "elements_in"),
    [
        (tensors_of("wan-14b-i2v", dtype="F16"), "fp16", "F16"),
        (tensors_of("wan-14b-i2v", dtype="F32"), "fp32", "F32"),
        (FP8, "fp8 e4m3", "F8_E4M3"),
        (scaled_fp8(FP8, "scale_weight"), "fp8 e4m3, scaled", "F8_E4M3"),
        (scaled_fp8(FP8, "weight_scale"), "fp8 e4m3, scaled", "F8_E4M3"),
        (nf4(tensors_of("wan-14b-i2v")), "bitsandbytes NF4", "U8"),
    ],
)
def test_the_form_of_a_file_is_told_and_its_scales_are_no_weights(
    tensors: Tensors, form: str, elements_in: str, tmp_path: Path
) -> None:
    header = read_header(write_safetensors(tmp_path / "file", tensors))
    part = only(recognise(header))
    assert (part.fits, part.form) == (True, form)
    assert next(iter(header.bytes_by_dtype)) == elements_in
    assert part.elements == sum(math.prod(shape) for shape in key_lists()["wan-14b-i2v"]["original"].values())
    # The mark `scaled_fp8` stands beside the weights of a file under a prefix, too.
    assert part.stored_bytes == header.size_bytes


def test_a_file_of_torchao_is_recognised_by_its_flattened_tensors(tmp_path: Path) -> None:
    tensors, metadata = torchao_int8(tensors_of("ltx-13b", "diffusers"))
    part = only(recognise(read_header(write_safetensors(tmp_path / "file", tensors, metadata))))
    assert (part.fits, part.form) == (True, "torchao")


def test_torchao_flattens_its_tensors_under_the_names_that_are_expected() -> None:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    module = torch.nn.Sequential(torch.nn.Linear(32, 16, dtype=torch.bfloat16))
    quantize_(module, Int8WeightOnlyConfig())
    flattened, metadata = flatten_tensor_state_dict(module.state_dict())
    expected, _ = torchao_int8({"0.weight": ("BF16", (16, 32)), "0.bias": ("BF16", (16,))})
    assert {*expected, "0._weight_zero_point"} == set(flattened)
    header = WeightsHeader(
        "safetensors",
        {name: StoredTensor("I8", tuple(value.shape), 0, 0) for name, value in flattened.items()},
        metadata,
    )
    assert {name: weight.shape for name, weight in weights_of(header).items()} == {
        "0.weight": (16, 32),
        "0.bias": (16,),
    }


@pytest.mark.parametrize(
    ("keys", "layout", "architecture", "quant"),
    [
        ("wan-14b-i2v-clip", "original", "wan", "Q4_K"),
        ("ltx-2b", "original", "ltxv", "Q8_0"),
        ("hunyuanvideo", "original", "hyvid", "Q5_0"),
        ("umt5-xxl", "llama.cpp", "t5encoder", "Q5_K"),
        ("llama-8b", "llama.cpp", "llama", "Q4_0"),
        ("gemma-12b", "llama.cpp", "gemma3", "Q6_K"),
    ],
)
def test_a_gguf_file_is_recognised_with_shapes_that_the_format_cannot_store(
    keys: str, layout: str, architecture: str, quant: str, tmp_path: Path
) -> None:
    tensors = tensors_of(keys, layout)
    part = only(recognise(read_header(write_gguf(tmp_path / "file", tensors, architecture, quant))))
    assert part.fits, part.differences
    assert part.architecture is not None
    assert (part.architecture.keys, part.layout, part.form) == (keys, layout, f"GGUF {quant}")


def test_a_checkpoint_of_several_components_has_each() -> None:
    tensors = {
        **tensors_of("ltx-13b", prefix="model.diffusion_model."),
        **tensors_of("ltx-vae-0.9.5", prefix="vae."),
        "vae.per_channel_statistics.channel": ("BF16", (128,)),
    }
    parts = recognise(header_of(tensors))
    assert [(part.prefix, part.architecture and part.architecture.keys, part.fits) for part in parts] == [
        ("model.diffusion_model.", "ltx-13b", True),
        ("vae.", "ltx-vae-0.9.5", True),
    ]


def test_what_is_missing_extra_or_misshaped_is_told_against_the_nearest_list() -> None:
    tensors = tensors_of("wan-14b-i2v-clip", "diffusers")
    del tensors["blocks.7.attn2.to_q.bias"]
    tensors["blocks.7.attn2.to_z.bias"] = ("BF16", (5120,))
    tensors["proj_out.bias"] = ("BF16", (48,))
    part = only(recognise(header_of(tensors)))
    assert not part.fits
    assert part.architecture is not None
    assert part.architecture.keys == "wan-14b-i2v-clip"
    assert part.differences.missing == ("blocks.7.attn2.to_q.bias",)
    assert part.differences.extra == ("blocks.7.attn2.to_z.bias",)
    assert part.differences.misshaped == (("proj_out.bias", (48,), (64,)),)


def test_weights_that_are_like_no_list_have_no_architecture() -> None:
    part = only(recognise(header_of({"features.0.weight": ("F32", (64, 3, 3, 3))})))
    assert part.architecture is None


@pytest.mark.parametrize("style", ["peft", "kohya", "comfyui"])
def test_a_lora_is_recognised_by_the_layers_it_changes(style: str) -> None:
    layout = "diffusers" if style == "peft" else "original"
    down, up, prefix = {
        "peft": ("lora_A.weight", "lora_B.weight", "transformer."),
        "kohya": ("lora_down.weight", "lora_up.weight", "lora_unet_"),
        "comfyui": ("lora_A.weight", "lora_B.weight", "diffusion_model."),
    }[style]
    tensors: Tensors = {}
    for name, (_, shape) in tensors_of("wan-14b-i2v-clip", layout).items():
        layer = name.removesuffix(".weight")
        if len(shape) == 2 and layer.startswith("blocks.") and "norm" not in name:
            layer = layer.replace(".", "_") if style == "kohya" else layer
            tensors[f"{prefix}{layer}.{down}"] = ("BF16", (32, shape[1]))
            tensors[f"{prefix}{layer}.{up}"] = ("BF16", (shape[0], 32))
    adapter = recognise_adapter(header_of(tensors))
    assert adapter is not None
    assert (adapter.ranks, adapter.layers) == ((32,), 480)
    assert [target.keys for target in adapter.targets] == ["wan-14b-i2v-clip", "wan-14b-flf"]


def test_recognition_imports_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys, app.models.inspection.entry, app.models.inspection.needs;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers', 'gguf')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=BUILT_IN_MODELS.parents[2])


@settings(max_examples=30, deadline=None, database=None)
@given(
    st.dictionaries(
        st.sampled_from(["blocks.0.", "vae.", "model.", "lora_unet_x.", "", "x."]).flatmap(
            lambda start: st.sampled_from(
                [
                    "ffn.0.weight",
                    "lora_A.weight",
                    "lora_B.weight",
                    "y",
                    "scaled_fp8",
                    "_weight_qdata",
                    "1.2.3",
                ]
            ).map(lambda end: start + end)
        ),
        st.tuples(
            st.sampled_from(["BF16", "U8", "F8_E4M3", "I8", "F4"]),
            st.lists(st.integers(0, 9), max_size=6).map(tuple),
        ),
    )
)
def test_any_header_is_recognised_or_not_but_never_an_error(tensors: Tensors) -> None:
    header = header_of(tensors)
    recognise_adapter(header)
    assert all(part.stored_bytes >= 0 for part in recognise(header))
