"""What is wrong with an entry made of parts is said before anything is loaded, with what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from model_parts import Base, keep_profile, make_base
from safetensors.torch import save_file
from typer.testing import CliRunner
from weight_files import names_for, write_fp8, write_gguf, write_safetensors

from app.cli import app as command
from app.config import ConfigError, Settings
from app.models.checks.faults import find_fault
from app.models.components import ModelUnavailable, components_of
from app.models.entries import ModelEntry, load_models
from app.models.loading import load_parts
from app.models.parts.checkpoint import gguf_library, read_tensors
from app.models.parts.part import GGUF_TYPES
from app.models.profile_tracer import trace_missing
from app.models.weight_sizes import component_sizes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base("LTXImageToVideoPipeline", tmp_path_factory.mktemp("base") / "model")


def as_is(name: str) -> str:
    return name


def whole(path: Path, base: Base) -> None:
    write_safetensors(path, base.transformer.state_dict(), as_is)


def cut(path: Path, base: Base) -> None:
    whole(path, base)
    path.write_bytes(path.read_bytes()[:-100])


def pointer(path: Path, _base: Base) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def pickle(path: Path, base: Base) -> None:
    torch.save(base.transformer.state_dict(), path)


def rows_scaled(path: Path, _base: Base) -> None:
    weight = torch.randn(4, 4).to(torch.float8_e4m3fn)
    save_file({"a.weight": weight, "a.weight_scale": torch.ones(4, 1)}, path)


def packed(path: Path, _base: Base) -> None:
    save_file({"a.weight": torch.zeros(4, 4, dtype=torch.uint8)}, path)


def scaled_int8(path: Path, _base: Base) -> None:
    save_file({"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.weight_scale": torch.ones(1)}, path)


def blocks_scaled(path: Path, _base: Base) -> None:
    weight = torch.randn(4, 4).to(torch.float8_e4m3fn)
    save_file({"a.weight": weight, "a.weight_scale_inv": torch.ones(1, 1)}, path)


def int8_of_bitsandbytes(path: Path, _base: Base) -> None:
    save_file({"a.weight": torch.zeros(4, 4, dtype=torch.int8), "a.SCB": torch.ones(4)}, path)


def int8(path: Path, _base: Base) -> None:
    save_file({"a.weight": torch.zeros(4, 4, dtype=torch.int8)}, path)


def overlapping(path: Path, _base: Base) -> None:
    form = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a.weight": form, "b.weight": form}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def quantized_folder(path: Path, base: Base) -> None:
    base.transformer.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (path / "config.json").write_text(json.dumps(config))


def gguf_file(path: Path, base: Base) -> None:
    write_gguf(path, base.transformer.state_dict(), kind=Kind.Q8_0, named=as_is)


def other_class(path: Path, base: Base) -> None:
    base.component("vae").save_pretrained(path)


def absent(_path: Path, _base: Base) -> None:
    pass


FAULTS: list[tuple[str, Callable[[Path, Base], None], str]] = [
    ("transformer", absent, r"its transformer \S+ does not exist: correct the entry"),
    ("transformer", cut, r"its transformer \S+ is cut short: it has [\d,]+ bytes"),
    ("transformer", pointer, r"is a Git LFS pointer of \d+ bytes"),
    ("text_encoder", pickle, r"its text_encoder \S+ is a PyTorch pickle, which could run code"),
    (
        "transformer",
        rows_scaled,
        r"has a scale of 4x1 values in F32 for a\.weight: fp8 can be loaded with one",
    ),
    ("transformer", packed, r"has a\.weight in U8, packed in a way that cannot be loaded"),
    ("transformer", scaled_int8, r"has a scale for a\.weight, which is I8"),
    ("transformer", blocks_scaled, r"has a\.weight_scale_inv, which quantizes a weight in a way that cannot"),
    ("transformer", int8_of_bitsandbytes, r"has a\.SCB, which quantizes a weight in a way that cannot"),
    ("transformer", int8, r"has a\.weight in I8, packed in a way that cannot be loaded"),
    ("transformer", overlapping, r"has a damaged header: b\.weight overlaps another tensor: get it again"),
    (
        "transformer",
        quantized_folder,
        r"its transformer \S+ is quantized \(bitsandbytes\), which is not loaded from a folder",
    ),
    ("vae", gguf_file, r"its vae \S+ is GGUF, which is loaded for transformers and text encoders"),
    (
        "transformer_2",
        whole,
        r"its entry names a transformer_2, which its base \S+ does not have \(it has text",
    ),
    ("image_encoder", whole, r"its entry names a image_encoder, which its base"),
    (
        "transformer",
        other_class,
        r"holds a AutoencoderKLLTXVideo; its base needs a LTXVideoTransformer3DModel",
    ),
]


@pytest.mark.parametrize(
    ("name", "write", "reason"), FAULTS, ids=lambda each: getattr(each, "__name__", None)
)
def test_a_part_that_cannot_be_loaded_is_a_fault_of_its_model(
    base: Base, name: str, write: Callable[[Path, Base], None], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "part"
    write(path, base)
    settings, entry = base.entry(tmp_path, {name: path})
    fault = find_fault(entry, settings)
    assert fault is not None
    assert not fault.transient
    assert re.search(reason, fault.reason), fault.reason


@pytest.mark.parametrize("name", ["/proc/self/mem", "/tmp/" + 300 * "a"])
def test_a_part_that_the_system_does_not_read_is_a_fault_and_planning_says_so(
    base: Base, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for component in ("transformer", "vae"):
        settings, entry = base.entry(tmp_path, {component: name})
        fault = find_fault(entry, settings)
        assert fault is not None
        assert re.search(rf"its {component} \S+ cannot be read: ", fault.reason), fault.reason
    monkeypatch.setenv("FRAMEFIT_MODELS_FILE", str(settings.models_file))
    told = CliRunner().invoke(command, ["plan", "--model", "small", "--data-dir", str(settings.data_dir)])
    assert told.exit_code == 1
    assert told.stderr.startswith("framefit: small cannot be planned: its vae ")


def test_a_name_in_a_file_cannot_forge_a_line_of_the_log(base: Base, tmp_path: Path) -> None:
    path = tmp_path / "part"
    save_file({"a\nERROR forged\x1b[2J.weight": torch.zeros(4, 4, dtype=torch.uint8)}, path)
    settings, entry = base.entry(tmp_path, {"transformer": path})
    fault = find_fault(entry, settings)
    assert fault is not None
    assert fault.reason.isprintable()
    assert "has a ERROR forged?[2J.weight in U8" in fault.reason


def test_a_missing_library_is_named_by_its_extra(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.gguf"
    gguf_file(path, base)
    settings, entry = base.entry(tmp_path, {"transformer": path})
    assert find_fault(entry, settings) is None
    monkeypatch.setattr("app.models.parts.part.importlib.util.find_spec", lambda _name: None)
    fault = find_fault(entry, settings)
    assert fault is not None
    assert fault.reason.endswith("the library for it is missing: pip install 'framefit[gguf]'")


def misnamed(path: Path, base: Base) -> None:
    weights = base.transformer.state_dict()
    weights["other.weight"] = weights.pop("proj_in.weight")
    write_fp8(path, weights, as_is)


def misshaped(path: Path, base: Base) -> None:
    weights = base.transformer.state_dict()
    weights["proj_in.weight"] = torch.zeros(256, 16)
    write_safetensors(path, weights, names_for("LTXVideoTransformer3DModel", "comfyui"))


def deeper(path: Path, base: Base) -> None:
    shape = base.transformer
    config = {**shape.config, "num_layers": shape.config.num_layers + 2}
    write_safetensors(path, type(shape).from_config(config).state_dict(), as_is)


def deeper_gguf(path: Path, base: Base) -> None:
    shape = base.transformer
    config = {**shape.config, "num_layers": shape.config.num_layers + 2}
    named = names_for("LTXVideoTransformer3DModel", "original")
    write_gguf(path, type(shape).from_config(config).state_dict(), kind=Kind.Q8_0, named=named)


def with_more_inputs(path: Path, base: Base) -> None:
    weights = {**base.transformer.state_dict(), "img_emb.emb_pos": torch.zeros(1, 4, 4)}
    write_safetensors(path, weights, names_for("LTXVideoTransformer3DModel", "comfyui"))


def of_integers(path: Path, base: Base) -> None:
    weights = base.transformer.state_dict()
    weights["scale_shift_table"] = weights["scale_shift_table"].to(torch.int32)
    save_file(weights, path)


MISFITS = [
    (
        deeper,
        r"LTXVideoTransformer3DModel as its base is has no place for \d+ of its .*transformer_blocks\.1\.",
    ),
    (deeper_gguf, r"as its base is has no place for \d+ of its .*transformer_blocks\.1\."),
    (with_more_inputs, r"has no place for 1 of its tensors, such as img_emb\.emb_pos"),
    (of_integers, r"has scale_shift_table in torch\.int32, and LTXVideoTransformer3DModel computes with"),
    (
        misnamed,
        r"is no LTXVideoTransformer3DModel as its base is: 1 of \d+ tensors are missing, such as proj_in",
    ),
    (
        misshaped,
        r"another size of LTXVideoTransformer3DModel .*proj_in\.weight has shape \(256, 16\), the base",
    ),
]


@pytest.mark.parametrize(("write", "reason"), MISFITS, ids=lambda each: getattr(each, "__name__", None))
def test_a_file_that_does_not_fit_its_base_is_found_from_its_header(
    base: Base, write: Callable[[Path, Base], None], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "part"
    write(path, base)
    settings, entry = base.entry(tmp_path, {"transformer": path})
    with pytest.raises(ModelUnavailable, match=reason):
        component_sizes(components_of(entry, settings), entry.dtype)
    with pytest.raises(ModelUnavailable, match=f"model small cannot be loaded: its transformer .*{reason}"):
        load_parts(entry, settings)


def test_a_file_that_is_cut_while_it_is_loaded_makes_its_model_unavailable(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part"
    whole(path, base)
    settings, entry = base.entry(tmp_path, {"transformer": path})

    def read_cut(*given: Any, **options: Any) -> Any:
        path.write_bytes(path.read_bytes()[:-10])
        return read_tensors(*given, **options)

    monkeypatch.setattr("app.models.parts.assembly.read_tensors", read_cut)
    with pytest.raises(
        ModelUnavailable, match=r"model small cannot be loaded: its transformer \S+ cannot be"
    ):
        load_parts(entry, settings)


def test_what_files_of_text_encoders_hold_beside_them_is_no_fault(base: Base, tmp_path: Path) -> None:
    path = tmp_path / "part"
    weights = base.component("text_encoder").state_dict()
    weights = {name: each for name, each in weights.items() if name != "encoder.embed_tokens.weight"}
    beside = {
        "decoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(2),
        "lm_head.weight": torch.zeros(2),
    }
    save_file({**weights, **beside, "spiece_model": torch.zeros(9, dtype=torch.uint8)}, path)
    settings, entry = base.entry(tmp_path, {"text_encoder": path})
    component_sizes(components_of(entry, settings), entry.dtype)
    save_file({**weights, "encoder.block.9.layer.0.SelfAttention.q.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelUnavailable, match=r"no place for 1 of its tensors, such as encoder\.block\.9"):
        component_sizes(components_of(entry, settings), entry.dtype)


def test_a_model_whose_file_does_not_fit_is_not_offered_until_the_file_changes(
    base: Base, tmp_path: Path
) -> None:
    path = tmp_path / "part"
    misnamed(path, base)
    settings, entry = base.entry(tmp_path, {"transformer": path})
    keep_profile(settings, entry)
    assert not trace_missing(settings, {"small": entry})
    fault = find_fault(entry, settings)
    assert fault is not None
    assert "tensors are missing" in fault.reason
    whole(path, base)
    assert find_fault(entry, settings) is None


def test_types_of_gguf_are_those_that_diffusers_computes_with() -> None:
    supported = {each.name for each in gguf_library().SUPPORTED_GGUF_QUANT_TYPES}
    assert supported | {"F32", "F16"} == GGUF_TYPES


def test_kernels_that_the_hub_would_supply_stay_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSERS_GGUF_CUDA_KERNELS", "true")
    assert gguf_library().ops is None


def models(folder: Path, text: str) -> dict[str, ModelEntry]:
    (folder / "models.toml").write_text(text)
    return load_models(Settings(data_dir=folder / "data", models_file=folder / "models.toml"))


@pytest.mark.parametrize("named", ["wan22-i2v-a14b", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"])
def test_an_entry_takes_what_it_leaves_out_from_the_one_that_is_its_base(named: str, tmp_path: Path) -> None:
    text = f'[models.mine]\nbase = "{named}"\ntransformer = "/t.gguf"\n[models.mine.defaults]\nwidth = 480\n'
    found = models(tmp_path, text)
    mine, published = found["mine"], found["wan22-i2v-a14b"]
    assert (mine.source, mine.pipeline, mine.limits) == (
        published.source,
        published.pipeline,
        published.limits,
    )
    assert (mine.defaults.width, mine.defaults.height) == (480, published.defaults.height)
    assert mine.parts == {"transformer": "/t.gguf"}
    assert published.parts == {}


def test_an_entry_with_a_transformer_of_its_own_does_not_inherit_how_the_base_quantizes(
    tmp_path: Path,
) -> None:
    text = '[models.a]\nbase = "wan22-ti2v-5b"\nquantize = "int8"\n[models.b]\nbase = "a"\n'
    found = models(tmp_path, f'{text}transformer = "/t.gguf"\n[models.c]\nbase = "a"\nvae = "/v"\n')
    assert [found[name].quantize for name in "abc"] == ["int8", None, "int8"]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ('base = "b"\nsource = "s"', r"models\.mine: base takes the place of source: give one of them"),
        ('base = "mine"', r"models\.mine\.base: mine leads back to mine"),
        ('base = "ltx-video"\ntransformer = ""', r"models\.mine\.transformer: String should have at least 1"),
        (
            'base = "ltx-video"\ntransformer = "t.gguf"\nquantize = "int8"',
            r"models\.mine\.quantize: a transformer from a file of its own stays as it is",
        ),
        (
            'base = "dynamicrafter-256"\nvae = "v"',
            r"models\.mine\.vae: DynamiCrafterPipeline is loaded whole",
        ),
    ],
)
def test_an_entry_that_contradicts_itself_stops_the_start(lines: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        models(tmp_path, f"[models.mine]\n{lines}\n")
