"""Published checkpoints: complete key maps on shapes alone, careful reading, clear refusals, conversion."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original_layout
import pytest
import torch
from golden_case import Golden, golden_configs
from safetensors import safe_open
from safetensors.torch import save_file

from app.pipelines.dynamicrafter import DynamiCrafterPipeline, convert, from_single_file
from app.pipelines.dynamicrafter.checkpoint.keymap import canonical, is_unused
from app.pipelines.dynamicrafter.checkpoint.loading import layout_of, load_components
from app.pipelines.dynamicrafter.checkpoint.reading import (
    CheckpointError,
    CheckpointMismatch,
    UnreadableCheckpoint,
    check,
    read_tensors,
)
from app.pipelines.dynamicrafter.components import component_configs, empty_components
from app.pipelines.dynamicrafter.tiny import tiny_configs
from app.pipelines.dynamicrafter.tokenizer import tokenizer_from_merges

UNET_KEYS = {256: 1532, 512: 1516, 1024: 1516}
BUFFERS = {256: 12, 512: 13, 1024: 13}

Tensors = dict[str, torch.Tensor]


def _load(path: Path, resolution: int) -> DynamiCrafterPipeline:
    return from_single_file(path, resolution, tokenizer_from_merges([]), tiny_configs())


@pytest.mark.parametrize("resolution", UNET_KEYS)
def test_the_key_maps_of_the_published_models_are_complete_both_ways(resolution: int) -> None:
    shapes = original_layout.checkpoint(resolution)
    tensors = {canonical(key): torch.empty(shape, device="meta") for key, shape in shapes.items()}
    components = empty_components(component_configs(resolution))
    layout = layout_of(components)
    sources = check(Path("model.ckpt"), tensors, components, layout)

    assert sum(key.startswith("model.diffusion_model.") for key in shapes) == UNET_KEYS[resolution]
    assert (
        len(sources["unet"])
        == len({source.key for source in sources["unet"].values()})
        == UNET_KEYS[resolution]
    )
    used = {source.key for part in sources.values() for source in part.values()}
    unused = {key for key in tensors if is_unused(key, layout)}
    assert used | unused == tensors.keys()
    assert not used & unused
    assert sum("." not in key for key in unused) == BUFFERS[resolution]


@pytest.mark.parametrize("resolution", UNET_KEYS)
def test_every_element_of_the_file_lands_in_exactly_one_place(resolution: int, tmp_path: Path) -> None:
    tensors = original_layout.random_checkpoint(resolution)
    save_file(tensors, tmp_path / "model.safetensors")
    pipeline = _load(tmp_path / "model.safetensors", resolution)
    layout = layout_of(pipeline.components)
    loaded = [
        value.flatten()
        for name in ("unet", "vae", "text_encoder", "image_encoder", "image_projector")
        for value in getattr(pipeline, name).state_dict().values()
    ]
    expected = [value.flatten() for key, value in tensors.items() if not is_unused(canonical(key), layout)]
    assert torch.equal(torch.cat(loaded).sort().values, torch.cat(expected).sort().values)


def test_the_golden_file_has_the_derived_keys(golden_checkpoint: Path, golden: Golden) -> None:
    unet, vision, text = (golden.case[name] for name in ("unet", "vision_encoder", "text_encoder"))
    widths = original_layout.Widths(
        model_channels=unet["model_channels"],
        channel_mult=unet["channel_mult"],
        head=unet["num_head_channels"],
        context=unet["context_dim"],
        vae_channels=golden.case["vae"]["ch"],
        vae_mult=golden.case["vae"]["ch_mult"],
        resampler=golden.case["resampler"]["dim"],
        resampler_depth=golden.case["resampler"]["depth"],
        resampler_inner=golden.case["resampler"]["heads"] * golden.case["resampler"]["dim_head"],
        text_vocabulary=text["vocab_size"],
        text_layers=text["layers_in_checkpoint"],
        vision=vision["width"],
        vision_layers=vision["layers"],
        vision_patch=vision["patch_size"],
        vision_tokens=(vision["image_size"] // vision["patch_size"]) ** 2 + 1,
    )
    with safe_open(golden_checkpoint, "pt") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    assert found == original_layout.checkpoint(512, widths)


def _drop(tensors: Tensors) -> str:
    tensors.pop("model.diffusion_model.out.2.weight")
    return "1 missing: model.diffusion_model.out.2.weight"


def _add(tensors: Tensors) -> str:
    tensors["model.diffusion_model.lora.weight"] = torch.zeros(1)
    return "1 extra: model.diffusion_model.lora.weight"


def _reshape(tensors: Tensors) -> str:
    tensors["image_proj_model.proj_in.weight"] = torch.zeros(16, 17)
    return "1 misshaped: image_proj_model.proj_in.weight is (16, 17), not (16, 16)"


def _flatten_kernel(tensors: Tensors) -> str:
    name = "first_stage_model.decoder.mid.attn_1.q.weight"
    tensors[name] = tensors[name].flatten(1)
    return f"1 misshaped: {name} is (8, 8), not (8, 8, 1, 1)"


def _one_block_too_many(tensors: Tensors) -> str:
    name = "cond_stage_model.model.transformer.resblocks.3.ln_1.bias"
    tensors[name] = torch.zeros(16)
    return f"1 extra: {name}"


@pytest.mark.parametrize("spoil", [_drop, _add, _reshape, _flatten_kernel, _one_block_too_many])
def test_a_file_that_does_not_fit_is_refused_naming_the_key(
    spoil: Callable[[Tensors], str], tmp_path: Path
) -> None:
    tensors = original_layout.random_checkpoint(512)
    message = spoil(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatch) as caught:
        _load(tmp_path / "model.safetensors", 512)
    assert message in str(caught.value)
    assert len(caught.value.missing) + len(caught.value.extra) + len(caught.value.misshaped) == 1


@pytest.mark.parametrize(
    ("in_file", "asked", "part"),
    [
        (512, 256, "16 missing: model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.alpha"),
        (256, 512, "16 extra: model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.alpha"),
        (1024, 512, "dynamic rescale to 0.3, not 0.7"),
        (512, 1024, "dynamic rescale to 0.7, not 0.3"),
    ],
)
def test_a_file_of_another_resolution_is_refused(in_file: int, asked: int, part: str, tmp_path: Path) -> None:
    # One residual block a level in the tiny model: 3 + 1 + 6 spatial transformers.
    part = part.replace("16 ", "10 ")
    save_file(original_layout.random_checkpoint(in_file), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=part.replace(".", r"\.")):
        _load(tmp_path / "model.safetensors", asked)


def _flat(tensors: Tensors) -> Any:
    return tensors


def _lightning(tensors: Tensors) -> Any:
    return {"state_dict": tensors, "epoch": 3, "global_step": 7}


def _deepspeed(tensors: Tensors) -> Any:
    return {"module": {f"_forward_module.{key}": value for key, value in tensors.items()}}


@pytest.mark.parametrize("wrap", [_flat, _lightning, _deepspeed])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_read_however_they_are_wrapped(
    wrap: Callable[[Tensors], Any], zipped: bool, tmp_path: Path
) -> None:
    tensors = {"model.diffusion_model.framestride_embed.0.bias": torch.arange(3.0)}
    torch.save(wrap(tensors), tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    (found,) = read_tensors(tmp_path / "model.ckpt").items()
    assert found[0] == "model.diffusion_model.fps_embedding.0.bias"
    assert torch.equal(found[1], torch.arange(3.0))


class _Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def _save_bomb(path: Path) -> None:
    torch.save({"state_dict": {"key": _Bomb()}}, path)


def _save_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"key": _Bomb()}))


def _save_noise(path: Path) -> None:
    path.write_bytes(b"not a checkpoint")


def _save_nothing(path: Path) -> None:
    path.write_bytes(b"")


def _save_numbers(path: Path) -> None:
    torch.save({"state_dict": {"key": 1.0}}, path)


def _save_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def _save_numbered(path: Path) -> None:
    torch.save({1: torch.zeros(1)}, path)


def _save_wrapped_list(path: Path) -> None:
    torch.save({"state_dict": [torch.zeros(1)]}, path)


def _save_wrapped_number(path: Path) -> None:
    torch.save({"module": 1}, path)


def _save_text(path: Path) -> None:
    path.write_text("no checkpoint at all\n")


def _save_part(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:900])


FOREIGN = [
    _save_bomb,
    _save_pickle,
    _save_noise,
    _save_nothing,
    _save_numbers,
    _save_list,
    _save_numbered,
    _save_wrapped_list,
    _save_wrapped_number,
    _save_text,
    _save_part,
]


@pytest.mark.parametrize("write", FOREIGN)
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_anything_but_tensors_is_refused_and_never_executed(
    write: Callable[[Path], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(UnreadableCheckpoint, match=name) as raised:
        read_tensors(tmp_path / name)
    assert not (tmp_path / "exploded").exists()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        read_tensors(tmp_path / "absent.ckpt")


@pytest.mark.parametrize(
    ("resolution", "config", "match"),
    [
        (768, {}, "no DynamiCrafter model of resolution 768"),
        (512, {"transformer": {}}, "no component is called 'transformer'"),
        (512, {"unet": {"depth": 3}}, "DynamiCrafterUNet has no setting depth"),
        (512, {"vae": {"width": 3, "depth": 3}}, "AutoencoderKL has no setting width, depth"),
        (512, {"text_encoder": {"width": 3}}, "CLIPTextConfig has no setting width"),
        (512, {"scheduler": {"eta": 3}}, "DynamiCrafterScheduler has no setting eta"),
    ],
)
def test_unknown_configurations_are_refused(resolution: int, config: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        load_components(tmp_path / "model.ckpt", resolution, config=config)


def test_a_converted_folder_makes_the_same_video(
    golden: Golden, golden_checkpoint: Path, tmp_path: Path
) -> None:
    golden.pipeline.tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = convert(
        golden_checkpoint,
        tmp_path / "model",
        512,
        tokenizer=tmp_path / "tokenizer",
        config=golden_configs(golden.case),
        torch_dtype=torch.float32,
    )
    loaded = DynamiCrafterPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.resolution == 512
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tokenizer"]
    for name in ("unet", "vae", "text_encoder", "image_encoder", "image_projector"):
        original = getattr(golden.pipeline, name).state_dict()
        assert all(
            torch.equal(value, original[key]) for key, value in getattr(loaded, name).state_dict().items()
        )
    assert loaded.tokenizer.pad_token_id == 0
    prompt = golden.run["prompt"]
    with torch.no_grad():
        assert torch.allclose(loaded.encode_prompt(prompt), golden.pipeline.encode_prompt(prompt), atol=1e-5)
    with pytest.raises(FileExistsError, match="model"):
        convert(golden_checkpoint, folder, 512)


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(original_layout.random_checkpoint(256), tmp_path / "model.safetensors")

    def fail_halfway(_self: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model_index.json").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DynamiCrafterPipeline, "save_pretrained", fail_halfway)
    with pytest.raises(OSError, match="No space left"):
        convert(
            tmp_path / "model.safetensors",
            tmp_path / "models" / "dynamicrafter",
            256,
            tokenizer_from_merges([]),
            tiny_configs(),
        )
    assert not list((tmp_path / "models").iterdir())


def test_half_precision_components_do_not_hold_on_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(original_layout.random_checkpoint(256), path)
    pipeline = from_single_file(path, 256, tokenizer_from_merges([]), tiny_configs(), torch.float16)
    before = pipeline.unet.conv_in.weight.clone()
    path.write_bytes(b"\0" * path.stat().st_size)
    assert pipeline.unet.dtype == torch.float16
    assert torch.equal(pipeline.unet.conv_in.weight, before)
