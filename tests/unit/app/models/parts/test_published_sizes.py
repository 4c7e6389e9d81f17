"""Transformers of published size are sized from headers alone, in the layout of their authors.

The files are headers with a hole in place of the tensors. The layouts are inverted from diffusers'
converters; none was compared with a published file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from weight_files import names_for, write_gguf_hole, write_hole

from app.config import Settings
from app.models.components import ModelUnavailable, build_component, components_of
from app.models.entries import load_models
from app.models.files.architectures.key_lists import key_lists
from app.models.files.architectures.table import ARCHITECTURES
from app.models.weight_sizes import component_sizes

Shapes = dict[str, tuple[int, ...]]
# Of HunyuanVideo: names of diffusers, in this order, and those of the authors.
HUNYUAN = [
    (r"^x_embedder\.", "img_in."),
    (r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_1", "txt_in.t_embedder.mlp.0"),
    (r"^context_embedder\.time_text_embed\.timestep_embedder\.linear_2", "txt_in.t_embedder.mlp.2"),
    (r"^context_embedder\.time_text_embed\.text_embedder\.", "txt_in.c_embedder."),
    (r"^context_embedder\.proj_in", "txt_in.input_embedder"),
    (r"^context_embedder\.token_refiner\.refiner_blocks", "txt_in.individual_token_refiner.blocks"),
    (r"^(txt_in.*)norm_out\.linear", r"\1adaLN_modulation.1"),
    (r"^(txt_in.*)attn\.to_out\.0", r"\1self_attn_proj"),
    (r"^(txt_in.*)ff\.net\.0\.proj", r"\1mlp.fc1"),
    (r"^(txt_in.*)ff\.net\.2", r"\1mlp.fc2"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.mlp.2"),
    (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.mlp.0"),
    (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"^single_transformer_blocks", "single_blocks"),
    (r"^(single.*)norm\.linear", r"\1modulation.linear"),
    (r"^(single.*)attn\.norm_([qk])", r"\1\2_norm"),
    (r"^(single.*)proj_out", r"\1linear2"),
    (r"^transformer_blocks", "double_blocks"),
    (r"^(double.*)norm1\.linear", r"\1img_mod.linear"),
    (r"^(double.*)norm1_context\.linear", r"\1txt_mod.linear"),
    (r"^(double.*)attn\.norm_added_([qk])", r"\1txt_attn_\2_norm"),
    (r"^(double.*)attn\.norm_([qk])", r"\1img_attn_\2_norm"),
    (r"^(double.*)attn\.to_out\.0", r"\1img_attn_proj"),
    (r"^(double.*)attn\.to_add_out", r"\1txt_attn_proj"),
    (r"^(double.*)ff\.net\.0\.proj", r"\1img_mlp.fc1"),
    (r"^(double.*)ff\.net\.2", r"\1img_mlp.fc2"),
    (r"^(double.*)ff_context\.net\.0\.proj", r"\1txt_mlp.fc1"),
    (r"^(double.*)ff_context\.net\.2", r"\1txt_mlp.fc2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
]
# Matrices that the authors keep as one: the last name takes the rows of all.
JOINED = [
    (r"^(single.*)attn\.to_[qkv]\.|^(single.*)proj_mlp\.", "linear1."),
    (r"^(txt_in.*)attn\.to_[qkv]\.", "self_attn_qkv."),
    (r"^(double.*)attn\.to_[qkv]\.", "img_attn_qkv."),
    (r"^(double.*)attn\.add_[qkv]_proj\.", "txt_attn_qkv."),
]


def hunyuan(shapes: Shapes) -> Shapes:
    """The tensors as HunyuanVideo's authors name and join them."""
    found: Shapes = {}
    for name, shape in shapes.items():
        for pattern, renamed in HUNYUAN:
            name = re.sub(pattern, renamed, name)
        for pattern, joined in JOINED:
            if match := re.match(pattern, name):
                name = (match[1] or match.groups()[-1]) + joined + name.rpartition(".")[2]
        before = found.get(name)
        found[name] = shape if before is None else (before[0] + shape[0], *shape[1:])
    return found


def wan(shapes: Shapes) -> Shapes:
    named = names_for("WanTransformer3DModel", "comfyui")
    return {named(name): shape for name, shape in shapes.items()}


def scaled_fp8(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    forms = {name: ("F8_E4M3" if is_matrix(name, shape) else "BF16", shape) for name, shape in shapes.items()}
    scales = {
        name.removesuffix("weight") + "scale_weight": ("F32", (1,))
        for name, (dtype, _) in forms.items()
        if dtype == "F8_E4M3"
    }
    write_hole(path, forms | scales)


def q4_k(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    write_gguf_hole(
        path,
        {name: (Kind.Q4_K if is_matrix(name, shape) else Kind.F32, shape) for name, shape in shapes.items()},
    )


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.endswith(".weight")


@pytest.mark.parametrize(("write", "bits"), [(scaled_fp8, 8), (q4_k, 4.5)], ids=["scaled fp8", "Q4_K"])
@pytest.mark.parametrize(("model", "layout"), [("hunyuanvideo-i2v", hunyuan), ("wan21-i2v-480p", wan)])
def test_a_published_transformer_is_sized_without_weights_and_network(
    model: str, layout: object, write: object, bits: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    assert callable(layout)
    assert callable(write)
    path = tmp_path / "transformer"
    (tmp_path / "models.toml").write_text(f'[models.mine]\nbase = "{model}"\ntransformer = "{path}"\n')
    settings = Settings(data_dir=tmp_path / "data", models_file=tmp_path / "models.toml")
    entries = load_models(settings)
    with torch.device("meta"):
        module = build_component(components_of(entries[model], settings)["transformer"])
    shapes = {name: tuple(each.shape) for name, each in module.state_dict().items()}
    write(path, layout(shapes))
    part = components_of(entries["mine"], settings)["transformer"]
    size = component_sizes({"transformer": part}, "bfloat16")[0]
    matrices = sum(s[0] * s[1] for name, s in shapes.items() if is_matrix(name, s))
    others = sum(each.numel() for each in module.state_dict().values()) - matrices
    assert size.weight_bytes == pytest.approx(matrices * bits / 8 + others * 2, rel=0.02)
    assert size.working_bytes >= 2 * max(s[0] * s[1] for name, s in shapes.items() if is_matrix(name, s))
    assert size.group_bytes is not None
    assert size.group_bytes < size.weight_bytes / 20


LAYOUTS = [
    ("ltx-vae-0.9", "original"),
    ("ltx-vae-0.9.1", "original"),
    ("ltx-vae-0.9.5", "diffusers"),
    ("wan22-vae", "original"),
    ("wan22-vae", "diffusers"),
    ("umt5-xxl", "original"),
]


@pytest.mark.parametrize(("keys", "layout"), LAYOUTS)
def test_the_loader_refuses_what_the_table_says_to_be_refused(keys: str, layout: str, tmp_path: Path) -> None:
    known = next(each for each in ARCHITECTURES if each.keys == keys)
    path = tmp_path / "file.safetensors"
    write_hole(path, {name: ("BF16", shape) for name, shape in key_lists()[keys][layout].items()})
    (tmp_path / "models.toml").write_text(
        f'[models.mine]\nbase = "{known.likes[-1]}"\n{known.component} = "{path}"\n'
    )
    settings = Settings(data_dir=tmp_path / "data", models_file=tmp_path / "models.toml")
    entry = load_models(settings)["mine"]
    component = components_of(entry, settings)[known.component]
    refused: AbstractContextManager[object] = nullcontext()
    if known.refusal(layout, entry.source) is not None:
        refused = pytest.raises(ModelUnavailable, match="as its base is")
    with refused, torch.device("meta"):
        build_component(component)
