"""The models of models.toml and `framefit convert`: published values, absent files, conversion."""

import json
import tomllib
from pathlib import Path

import original_layout
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from adaptive.device.probe import open_probe
from app.cli import app as command
from app.config import Settings
from app.models import profiles
from app.models.components import ModelUnavailable, components_of, local_files
from app.models.entries import BUILT_IN_MODELS, ModelEntry, load_models
from app.models.loading import load_pipeline, load_vae, where_weights_are
from app.models.weight_sizes import component_sizes
from app.pipelines.dynamicrafter import DEFAULTS, DynamiCrafterPipeline
from app.pipelines.dynamicrafter.checkpoint import loading
from app.pipelines.dynamicrafter.components import ComponentConfigs, component_configs
from app.pipelines.dynamicrafter.tiny import tiny_configs
from app.pipelines.dynamicrafter.tokenizer import tokenizer_from_merges

CPU = torch.device("cpu")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def entry(settings: Settings) -> ModelEntry:
    return load_models(settings)["dynamicrafter-512"].model_copy(update={"dtype": "float32"})


@pytest.fixture
def tiny_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published model is a tiny one: all else is as it is."""

    def configs(resolution: int, _overrides: object = None) -> ComponentConfigs:
        return component_configs(resolution, tiny_configs())

    monkeypatch.setattr(loading, "component_configs", configs)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A file as it is published, with a vocabulary beside it."""
    path = tmp_path / "download" / "model.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": original_layout.random_checkpoint(512)}, path)
    tokenizer_from_merges([]).save_pretrained(path.parent / "tokenizer")
    return path


def convert(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(command, ["convert", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.parametrize("resolution", DEFAULTS)
def test_the_model_list_has_the_published_values(settings: Settings, resolution: int) -> None:
    published, entry = DEFAULTS[resolution], load_models(settings)[f"dynamicrafter-{resolution}"]
    assert entry.resolution == resolution
    assert entry.defaults.model_dump() == {
        "width": published.width,
        "height": published.height,
        "num_frames": published.num_frames,
        "fps": published.output_fps,
        "num_inference_steps": published.num_inference_steps,
        "guidance_scale": published.guidance_scale,
        "fs": published.fs,
    }
    assert entry.call == {"eta": published.eta, "guidance_rescale": published.guidance_rescale}
    assert entry.inputs == {"last_image", "loop", "fs"}
    assert profiles.load(settings, entry) is not None, "a request must not wait for a trace"


def test_the_interpolation_model_differs_from_the_512_model_in_weights_and_frame_rate_only() -> None:
    models = tomllib.loads(BUILT_IN_MODELS.read_text(encoding="utf-8"))["models"]
    plain, between = models["dynamicrafter-512"], models["dynamicrafter-512-interp"]
    assert between["defaults"].pop("fs") == DEFAULTS[512].interpolation_fs
    del plain["defaults"]["fs"]
    assert {key for key in plain if plain[key] != between[key]} == {"description", "source"}


def test_sizes_come_from_published_numbers_alone(entry: ModelEntry, settings: Settings) -> None:
    sizes = {
        size.name: size.weight_bytes for size in component_sizes(components_of(entry, settings), "float16")
    }
    assert sizes["unet"] / 2 == pytest.approx(1438.9e6, rel=1e-4)
    assert sizes["image_projector"] / 2 == pytest.approx(48.8e6, rel=1e-3)


def test_files_that_are_absent_are_asked_for_with_every_step(entry: ModelEntry, settings: Settings) -> None:
    reading = open_probe("cpu").read()
    with pytest.raises(ModelUnavailable) as caught:
        load_pipeline(entry, settings, CPU, reading)
    folder = settings.models_dir / "dynamicrafter-512"
    for part in (
        "model.ckpt of Doubiiu/DynamiCrafter_512",
        "vocab.json",
        f"framefit convert model.ckpt --resolution 512 -o {folder}",
    ):
        assert part in str(caught.value)
    assert where_weights_are(entry, settings) is None


@pytest.mark.usefixtures("tiny_widths")
def test_the_same_model_is_loaded_from_the_file_and_from_the_folder_it_is_converted_to(
    entry: ModelEntry, settings: Settings, checkpoint: Path
) -> None:
    reading = open_probe("cpu").read()
    named = entry.model_copy(update={"source": str(checkpoint)})
    from_file = load_pipeline(named, settings, CPU, reading).pipe
    folder = settings.models_dir / entry.name
    status, said = convert(checkpoint, "-o", folder, "--resolution", 512, "--dtype", "float32")
    assert (status, said.splitlines()[-1]) == (0, str(folder))
    assert local_files(entry, settings) == folder
    from_folder = load_pipeline(entry, settings, CPU, reading).pipe
    assert isinstance(from_folder, DynamiCrafterPipeline)
    for name in ("unet", "vae", "text_encoder", "image_encoder", "image_projector"):
        state = getattr(from_folder, name).state_dict()
        assert all(
            torch.equal(value, state[key]) for key, value in getattr(from_file, name).state_dict().items()
        )
    assert from_folder.scheduler.config.rescale_base == 0.7
    assert torch.equal(load_vae(named, settings).quant_conv.weight, from_file.vae.quant_conv.weight)


@pytest.mark.usefixtures("tiny_widths")
def test_a_file_laid_into_the_data_folder_is_found(
    entry: ModelEntry, settings: Settings, checkpoint: Path
) -> None:
    (settings.models_dir / entry.name).parent.mkdir(parents=True)
    checkpoint.parent.rename(settings.models_dir / entry.name)
    vae = load_vae(entry, settings)
    assert where_weights_are(entry, settings) == str(settings.models_dir / entry.name / "model.ckpt")
    assert vae.dtype == torch.float32
    mixed = entry.model_copy(update={"dtype": "float16", "vae_dtype": "float32"})
    pipe = load_pipeline(mixed, settings, CPU, open_probe("cpu").read()).pipe
    assert (pipe.vae.dtype, pipe.unet.dtype) == (torch.float32, torch.float16)


@pytest.mark.usefixtures("tiny_widths")
def test_a_folder_is_replaced_only_when_that_is_asked_for_and_it_is_a_model(
    checkpoint: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "photos"
    assert convert(checkpoint, "-o", out, "--resolution", 512)[0] == 0
    assert json.loads((out / "model_index.json").read_text())["resolution"] == 512
    (out / "mark").touch()
    status, said = convert(checkpoint, "-o", out, "--resolution", 512)
    assert (status, (out / "mark").exists()) == (1, True)
    assert "exists already" in said
    assert convert(checkpoint, "-o", out, "--resolution", 512, "--overwrite")[0] == 0
    assert not (out / "mark").exists()
    other.mkdir()
    (other / "photo.jpg").touch()
    assert convert(checkpoint, "-o", other, "--resolution", 512, "--overwrite")[0] == 1
    assert (other / "photo.jpg").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"download", "out", "photos"}


@pytest.mark.usefixtures("tiny_widths")
def test_what_is_wrong_with_a_file_is_named_and_nothing_is_written(checkpoint: Path, tmp_path: Path) -> None:
    tensors = original_layout.random_checkpoint(512)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    bad = {
        "missing": {name: tensor for name, tensor in tensors.items() if name != key},
        "extra": {**tensors, "model.diffusion_model.unheard_of": torch.zeros(1)},
        "misshaped": {**tensors, key: torch.zeros(2, 2)},
    }
    for kind, content in bad.items():
        save_file(content, checkpoint.parent / "bad.safetensors")
        status, said = convert(
            checkpoint.parent / "bad.safetensors", "-o", tmp_path / "out", "--resolution", 512
        )
        assert status == 1
        assert f"1 {kind}: " in said
        assert (key if kind != "extra" else "unheard_of") in said
    status, said = convert(checkpoint, "-o", tmp_path / "out", "--resolution", 1024)
    assert status == 1
    assert "another resolution" in said
    (checkpoint.parent / "text.ckpt").write_text("no tensors")
    assert (
        "not a file of plain tensors"
        in convert(checkpoint.parent / "text.ckpt", "-o", tmp_path / "out", "--resolution", 512)[1]
    )
    assert convert(checkpoint, "-o", tmp_path / "out", "--resolution", 768)[0] == 1
    assert not (tmp_path / "out").exists()
