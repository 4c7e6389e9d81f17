"""`framefit inspect` says what files of weights are and which entry runs them, or why none does."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import nvml_stub
import pytest
from nvml_stub import StubGpu
from sparse_weights import (
    Tensors,
    nf4,
    scaled_fp8,
    tensors_of,
    write_gguf,
    write_safetensors,
)
from typer.testing import CliRunner, Result

from adaptive.device.nvml import Nvml
from app.cli import app
from app.models.files.sources import LocalFile
from app.models.inspection.entry import entry_of
from app.models.inspection.inspected import inspect_file

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FRAMEFIT_MODELS_FILE", raising=False)
    monkeypatch.chdir(tmp_path)


def inspect(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def wan_files(folder: Path) -> list[Path]:
    low = scaled_fp8(
        tensors_of("wan-14b-i2v", dtype="F8_E4M3", prefix="model.diffusion_model."), "weight_scale"
    )
    return [
        write_safetensors(folder / "wan_low_noise_fp8.safetensors", low),
        write_gguf(folder / "Wan-High-Q4.gguf", tensors_of("wan-14b-i2v"), "wan", "Q4_K"),
        write_gguf(folder / "umt5.gguf", tensors_of("umt5-xxl", "llama.cpp"), "t5encoder", "Q8_0"),
        write_safetensors(folder / "vae.safetensors", tensors_of("wan21-vae")),
    ]


def test_transformers_text_encoder_and_vae_make_one_entry(tmp_path: Path) -> None:
    low, high, umt5, vae = wan_files(tmp_path)
    result = inspect(low, high, umt5, vae, "--gpu", "12GB", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (entry,) = tomllib.loads(document["entry"])["models"].values()
    assert entry.pop("description")
    assert entry == {
        "base": "wan22-i2v-a14b",
        "transformer": str(high),
        "transformer_2": str(low),
        "text_encoder": str(umt5),
        "vae": str(vae),
    }
    needs = document["needs"]
    assert needs["bf16_bytes"] == 2 * sum(part["bf16_bytes"] // 2 for part in needs["components"])
    assert [part["verdict"][:18] for part in needs["components"]] == [
        "does not fit: its ",
        "fits as stored, no",
        "fits",
        "fits",
    ]


def test_the_text_names_component_model_form_and_what_the_card_holds(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "high.gguf", tensors_of("wan-14b-i2v"), "wan", "Q4_K")
    text = inspect(path, "--gpu", "12GB").stdout
    for expected in (
        "gguf, 7.5 GiB: Q4_K 7.5 GiB",
        "transformer, Wan 2.2 14B, image to video (WanTransformer3DModel)",
        "Wan 2.2 I2V A14B (high noise) or Wan 2.2 I2V A14B (low noise): the same keys",
        "unverified no downloaded file was compared",
        "7.5 GiB as stored,  26.6 GiB in bf16: fits as stored, not in bf16",
        "taken for high noise; the other is taken from the base",
        "[models.wan-2-2-i2v-a14b-gguf-q4-k]",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("keys", "base"),
    [("wan-14b-i2v-clip", "wan21-i2v-480p"), ("ltx-2b", "ltx-video"), ("hunyuanvideo", "hunyuanvideo-i2v")],
)
def test_a_transformer_alone_makes_an_entry_on_the_shipped_model(
    keys: str, base: str, tmp_path: Path
) -> None:
    path = write_safetensors(tmp_path / "file.safetensors", tensors_of(keys))
    entry = json.loads(inspect(path, "--json", "--gpu", "8GB").stdout)["entry"]
    (table,) = tomllib.loads(entry)["models"].values()
    assert (table["base"], table["transformer"]) == (base, str(path))


def test_a_model_that_is_not_shipped_gets_every_key_that_an_entry_needs(tmp_path: Path) -> None:
    tensors = {
        **tensors_of("ltx-13b", prefix="model.diffusion_model."),
        **tensors_of("ltx-vae-0.9.5", prefix="vae."),
    }
    path = write_safetensors(tmp_path / "ltxv-13b.safetensors", tensors)
    (table,) = tomllib.loads(json.loads(inspect(path, "--json").stdout)["entry"])["models"].values()
    assert (table["base"], table["transformer"], table["vae"]) == (
        "Lightricks/LTX-Video-0.9.7-dev",
        str(path),
        str(path),
    )
    assert (table["pipeline"], table["defaults"]["width"]) == ("LTXImageToVideoPipeline", 768)


def test_write_appends_the_entry_and_a_second_one_gets_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models_file = tmp_path / "models.toml"
    models_file.write_text('# mine\n[models.own]\nsource = "somewhere"\n', encoding="utf-8")
    path = write_safetensors(tmp_path / "ltx.safetensors", tensors_of("ltx-2b"))
    refused = inspect(path, "--write")
    assert refused.exit_code == 1
    assert "FRAMEFIT_MODELS_FILE" in refused.stderr
    monkeypatch.setenv("FRAMEFIT_MODELS_FILE", str(models_file))
    for _ in range(2):
        assert inspect(path, "--write").exit_code == 0
    text = models_file.read_text(encoding="utf-8")
    assert text.startswith("# mine\n")
    assert list(tomllib.loads(text)["models"]) == ["own", "ltx-video-2b-bf16", "ltx-video-2b-bf16-2"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"t5": "t5-xxl", "vae": "ltx-vae-0.9"}, "an entry needs a transformer"),
        ({"a": "wan-14b"}, "it makes videos from text alone"),
        ({"a": "ltx-2b", "b": "wan21-vae"}, "which is not one of LTX-Video 2B"),
        ({"a": "ltx-2b", "b": "ltx-2b"}, "both hold the transformer: name one"),
        ({"a": "svd"}, "an entry cannot name a file for the unet"),
    ],
)
def test_files_that_make_no_model_together_get_no_entry_but_a_reason(
    files: dict[str, str], reason: str, tmp_path: Path
) -> None:
    paths = [
        write_safetensors(tmp_path / name, tensors_of(keys, "diffusers")) for name, keys in files.items()
    ]
    result = inspect(*paths, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["entry"] is None
    assert reason in document["no_entry"]


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def safetensors(tensors: Tensors) -> Callable[[Path], object]:
    return lambda path: write_safetensors(path, tensors)


def cut(path: Path) -> None:
    write_safetensors(path, tensors_of("ltx-2b"))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def cut_in_header(path: Path) -> None:
    write_gguf(path, tensors_of("wan-5b"), "wan", "Q8_0")
    with path.open("r+b") as file:
        file.truncate(5000)


def other_llm(path: Path) -> None:
    write_gguf(path, {"blk.0.attn_q.weight": ("F16", (512, 512))}, "mamba", "Q8_0")


SD15 = {
    "model.diffusion_model.input_blocks.0.0.weight": ("F16", (320, 4, 3, 3)),
    "model.diffusion_model.out.2.weight": ("F16", (4, 320, 3, 3)),
    "first_stage_model.decoder.conv_in.weight": ("F16", (512, 4, 3, 3)),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": ("F16", (768,)),
}
UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "jpeg": (
        written(b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(99)),
        "is no safetensors file but a JPEG picture",
    ),
    "html": (
        written(b"<!DOCTYPE html><html>404: not found</html>"),
        "is no safetensors file but an HTML page, such as a site's error",
    ),
    "pickle": (written(b"PK\x03\x04" + bytes(99)), "is a PyTorch pickle, which could run code"),
    "old-pickle": (written(b"\x80\x02" + bytes(99)), "is a PyTorch pickle, which could run code"),
    "pointer": (
        written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "is a Git LFS pointer",
    ),
    "index": (
        written(b'{\n  "metadata": {}, "weight_map": {}}'),
        "is no safetensors file but a JSON document: name the file, or the folder of its parts",
    ),
    "empty": (written(b""), "has 0 bytes"),
    "cut": (cut, "is cut short: it has 3,8"),
    "cut-in-header": (cut_in_header, "ends within its header"),
    "missing": (lambda _path: None, "No such file"),
    "sd15": (safetensors(SD15), "is a Stable Diffusion checkpoint in the layout of its authors"),
    "other-llm": (other_llm, "is a model of another kind (general.architecture is mamba)"),
    "no-tensors": (safetensors({}), "holds no tensors"),
    "wrong-shape": (
        safetensors({**tensors_of("ltx-2b", "diffusers"), "proj_in.bias": ("BF16", (99,))}),
        "fits no component that is known; nearest is LTX-Video 2B (LTXVideoTransformer3DModel, diffusers "
        "layout), but 1 of another shape: proj_in.bias is [99], not [2048]",
    ),
    "lora-of-another": (
        safetensors({"unet.x.lora_A.weight": ("F16", (4, 32)), "unet.x.lora_B.weight": ("F16", (32, 4))}),
        "is a LoRA of 1 layers, which are those of no model that is known here",
    ),
    "codes-of-a-terminal": (
        safetensors({"\x1b[2J\nok": ("F32", (2,)), "y" * 100_000: ("F32", (2,))}),
        "it begins with ?[2J?ok, yyyy",
    ),
    "unknown": (
        safetensors({"features.0.weight": ("F32", (64, 3, 3, 3))}),
        "fits no component that is known; it begins with features.0.weight",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_damaged_or_foreign_file_is_refused_in_one_line_with_its_reason(case: str, tmp_path: Path) -> None:
    make, reason = UNUSABLE[case]
    path = tmp_path / case
    make(path)
    result = inspect(path)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 2000
    assert result.stdout == ""


def test_the_differences_of_a_file_that_fits_nothing_are_in_the_json(tmp_path: Path) -> None:
    tensors = tensors_of("wan21-vae", "diffusers")
    del tensors["decoder.conv_in.bias"]
    path = write_safetensors(tmp_path / "vae.safetensors", tensors)
    result = inspect(path, "--json")
    assert result.exit_code == 1
    (fault,) = json.loads(result.stdout)["faults"]
    assert fault["nearest"]["architecture"] == "Wan 2.1"
    assert fault["nearest"]["missing"] == ["decoder.conv_in.bias"]


def test_only_the_header_is_read(tmp_path: Path) -> None:
    read = 0

    class Counted(LocalFile):
        def read(self, start: int, length: int) -> bytes:
            nonlocal read
            data = super().read(start, length)
            read += len(data)
            return data

    for path in wan_files(tmp_path):
        read = 0
        found = inspect_file(path.name, Counted(path))
        assert found.parts
        assert read <= 2 * 2**20


def test_a_folder_of_a_sharded_component_is_read_as_one_file(tmp_path: Path) -> None:
    names = list(tensors_of("ltx-2b", "diffusers").items())
    folder = tmp_path / "transformer"
    folder.mkdir()
    for number, piece in enumerate((names[:300], names[300:]), start=1):
        shard = folder / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        write_safetensors(shard, dict(piece))
    assert "LTX-Video 2B" in inspect(folder).stdout
    refused = inspect(folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    assert "is part 1 of 2 of a file: name the folder" in refused.stderr


def test_the_formats_that_comfyui_declares_are_told(tmp_path: Path) -> None:
    tensors = scaled_fp8(tensors_of("ltx-2b", dtype="F8_E4M3"), "weight_scale")
    layers = {f"transformer_blocks.{n}.attn1.to_q": {"format": "float8_e4m3fn"} for n in range(28)}
    declared = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    path = write_safetensors(tmp_path / "ltx.safetensors", tensors, declared)
    assert "declared   float8_e4m3fn in 28 layers\n" in inspect(path).stdout
    declared = {"_quantization_metadata": "[1]"}
    path = write_safetensors(tmp_path / "odd.safetensors", tensors, declared)
    assert json.loads(inspect(path, "--json").stdout)["files"][0]["declared"] == {}


def test_a_lora_is_named_with_its_rank_and_gives_no_entry(tmp_path: Path) -> None:
    tensors = {
        f"diffusion_model.blocks.{block}.self_attn.{name}.lora_{side}.weight": ("BF16", shape)
        for block in range(40)
        for name in "qkvo"
        for side, shape in (("A", (16, 5120)), ("B", (5120, 16)))
    }
    result = inspect(write_safetensors(tmp_path / "lora.safetensors", tensors))
    assert result.exit_code == 0
    assert "LoRA of rank 16 for 160 layers of Wan 14B, text to video or" in result.stdout


def test_the_card_is_the_largest_of_this_machine_if_none_is_named(nvml_library: Path, tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    path = write_safetensors(tmp_path / "ltx.safetensors", tensors_of("ltx-2b"))
    command = [sys.executable, "-m", "app", "inspect", path, "--json"]
    for cards, expected in (
        ([StubGpu(total_bytes=8 * 2**30), StubGpu("GPU-2", total_bytes=24 * 2**30)], 24 * 2**30),
        ([], None),
    ):
        nvml_stub.write_machine(machine, cards)
        environ = {**nvml_stub.environment(nvml_library, machine), "PYTHONPATH": str(ROOT)}
        run = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        needs = json.loads(run.stdout)["needs"]
        assert needs["card_bytes"] == expected
        assert (needs["components"][0]["verdict"] is None) == (expected is None)


def test_without_a_card_the_bytes_are_shown_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Nvml, "devices", lambda _self: [])
    text = inspect(write_safetensors(tmp_path / "ltx.safetensors", tensors_of("ltx-2b"))).stdout
    assert "without a GPU on this machine; --gpu 12GiB compares with one" in text
    assert "3.6 GiB as stored,   3.6 GiB in bf16\n" in text


LTX, HUNYUAN = ("ltx-2b", "original"), ("hunyuanvideo", "original")
UNLOADABLE = [
    ([("hunyuanvideo15", "original")], "transformer HunyuanVideo 1.5: diffusers' single-file converter does"),
    ([("hunyuanvideo", "comfyui")], "transformer HunyuanVideo: diffusers' single-file converter does not"),
    ([("wan-14b-flf", "original")], "diffusers' single-file converter does not know img_emb.emb_pos"),
    ([("wan-14b-i2v", "diffusers"), ("umt5-xxl", "original")], "UMT5-XXL: diffusers' single-file converter"),
    (
        [("wan-5b", "diffusers"), ("wan22-vae", "original")],
        "vae Wan 2.2 5B: diffusers' single-file converter",
    ),
    (
        [HUNYUAN, ("llama-8b", "diffusers")],
        "LLaVA: it is a language model alone, and its base needs the vision",
    ),
    ([HUNYUAN, ("llama-8b", "llama.cpp")], "LLaVA: GGUF text encoders are loaded for T5 and UMT5"),
    ([("ltx-2", "original"), ("gemma-12b", "diffusers")], "Gemma 3 12B: it is a language model alone"),
    (
        [("ltx-2", "original"), ("gemma-12b", "llama.cpp")],
        "Gemma 3 12B: GGUF text encoders are loaded for T5",
    ),
    ([("hunyuanvideo15", "diffusers"), ("qwen-7b", "llama.cpp")], "Qwen2.5-VL 7B: GGUF text encoders are"),
    ([LTX, ("ltx-vae-0.9.1", "original")], "the vae of Lightricks/LTX-Video has other shapes"),
    ([LTX, ("ltx-vae-0.9.5", "diffusers")], "the vae of Lightricks/LTX-Video has other shapes"),
    ([("ltx-13b", "original"), ("ltx-vae-0.9", "original")], "the vae of Lightricks/LTX-Video-0.9.7-dev has"),
    ([("ltx-13b", "original"), ("ltx-vae-0.9.5", "original")], None),
    ([LTX, ("ltx-vae-0.9", "original"), ("t5-xxl", "llama.cpp")], None),
]


@pytest.mark.parametrize(("files", "reason"), UNLOADABLE)
def test_a_layout_or_a_base_that_no_loader_brings_together_is_told(
    files: list[tuple[str, str]], reason: str | None, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{keys}.weights" for keys, _ in files]
    for path, (keys, layout) in zip(paths, files, strict=True):
        if layout == "llama.cpp":
            write_gguf(path, tensors_of(keys, layout), "llm", "Q8_0")
        else:
            write_safetensors(path, tensors_of(keys, layout))
    entry = entry_of([inspect_file(str(path), path) for path in paths])
    refusals = [note for note in entry.notes if note.startswith("This entry cannot be loaded yet")]
    assert len(refusals) == (0 if reason is None else 1), refusals
    assert reason is None or reason in refusals[0]


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_gguf_file_in_parts_is_to_be_joined(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    some = dict(list(tensors_of("ltx-2b").items())[:50])
    path = write_gguf(folder / "ltx-00001-of-00002.gguf", some, "ltxv", "Q8_0")
    told = inspect(folder if form == "folder" else path).stderr
    assert "join them with llama-gguf-split --merge ltx-00001-of-00002.gguf" in told


def test_codes_in_the_names_of_a_file_do_not_reach_the_terminal(tmp_path: Path) -> None:
    hostile = {"vae.\x1b]0;owned\x07\n.weight": ("U8", (4,)), "vae.\x9b2J.bitsandbytes__\x9b2J": ("U8", (4,))}
    shown = inspect(write_safetensors(tmp_path / "ltx.safetensors", tensors_of("ltx-2b") | hostile))
    assert "cannot be loaded yet: its transformer" in shown.stdout
    assert all(each.isprintable() or each == "\n" for each in shown.stdout + shown.stderr)
    assert "owned" in shown.stdout
    assert ";owned?" in shown.stdout


def test_an_entry_that_the_loader_will_refuse_is_told_to_be_so(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "wan.safetensors", nf4(tensors_of("wan-14b-i2v")))
    shown = inspect(path)
    assert shown.exit_code == 0, shown.stderr
    assert "This entry cannot be loaded yet: its transformer" in shown.stdout
    plain = inspect(write_safetensors(tmp_path / "plain.safetensors", tensors_of("wan-14b-i2v")))
    assert "cannot be loaded" not in plain.stdout
