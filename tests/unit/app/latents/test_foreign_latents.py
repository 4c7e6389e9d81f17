"""Latents of other programs: what a model's VAE is given of them, what is said, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import Result

from adaptive.families import family_of
from adaptive.pipelines.capture import capture
from app.cli.options import chosen_model
from app.config import Settings
from app.latents.foreign.layout import Given, ModelTraits
from app.latents.foreign.rejected import LatentsRejected
from app.latents.source import open_source
from app.models.entries import load_models

Framefit = Callable[..., Result]
Open = Callable[..., tuple[Tensor, str]]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def by_channel(values: Any) -> Tensor:
    return torch.as_tensor(values).view(1, -1, 1, 1, 1)


def ltx(vae: Any, latents: Tensor) -> Tensor:
    """As LTXImageToVideoPipeline does before it decodes."""
    return latents * by_channel(vae.latents_std) / vae.config.scaling_factor + by_channel(vae.latents_mean)


def wan(vae: Any, latents: Tensor) -> Tensor:
    """As WanImageToVideoPipeline."""
    return latents / (1.0 / by_channel(vae.config.latents_std)) + by_channel(vae.config.latents_mean)


def factor(vae: Any, latents: Tensor) -> Tensor:
    """As the pipelines of Stable Video Diffusion, HunyuanVideo and CogVideoX."""
    return latents / vae.config.scaling_factor


def raw(_vae: Any, latents: Tensor) -> Tensor:
    return latents


@pytest.fixture
def open_latents(models_file: Path, vaes: dict[str, Any], tmp_path: Path) -> Open:
    """The latents `[B, C, T, h, w]` that the model's VAE is given of a file, and what is said."""
    settings = Settings(data_dir=tmp_path / "data", models_file=models_file)
    models = load_models(settings)

    def opened(path: Path, model: str | None, **given: Any) -> tuple[Tensor, str]:
        known = ModelTraits(models, settings)
        source = open_source(path, model, partial(chosen_model, models), Given(**given), known)
        vae = vaes[source.entry.name]
        clip, said = source.load(vae)
        return family_of(vae).as_video(clip.calls[0].latents, {}), said or ""

    return opened


def safetensors(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file({name: each.contiguous() for name, each in tensors.items()}, path, metadata)
    return path


def comfy(path: Path, latents: Tensor, *, old: bool = False) -> Path:
    mark = {} if old else {"latent_format_version_0": torch.tensor([])}
    return safetensors(path, {"latent_tensor": latents, **mark}, prompt='{"1": {}}')


def cache(path: Path, latents: Tensor, architecture: str, **more: Tensor) -> Path:
    name = "latents_{}x{}x{}_float32".format(*latents.shape[1:])
    about = {"architecture": architecture, "width": "64", "height": "64", "format_version": "1.0.1"}
    return safetensors(path, {name: latents, **more}, **about)


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def packed(latents: Tensor) -> Tensor:
    return latents.flatten(2).transpose(1, 2)


LTX, WAN, SVD, HUNYUAN = (1, 8, 3, 2, 2), (1, 16, 3, 4, 4), (1, 4, 3, 8, 8), (1, 4, 3, 4, 4)
SIDES = {"width": 64, "height": 64, "frames": 17}
# What a file is of the latents `[B, C, T, h, w]`: the model, their shape, the file, what its VAE gets, words.
TAKEN: dict[str, tuple[str, tuple[int, ...], Callable[[Path, Tensor], Path], Any, str]] = {
    "comfy-wan": ("wan", WAN, comfy, raw, "ComfyUI latent"),
    "comfy-ltx": ("ltx", LTX, comfy, ltx, "latents_std"),
    "comfy-images": ("svd", SVD, lambda p, z: comfy(p, z[0].transpose(0, 1)), raw, "raw"),
    "comfy-old": ("svd", SVD, lambda p, z: comfy(p, z * 0.18215, old=True), raw, "divided by 0.18215"),
    "cache-wan": ("wan", WAN, lambda p, z: cache(p, z[0], "wan", clip_float32=numbers(2, 2)), wan, "of wan"),
    "cache-hunyuan": ("hunyuan", HUNYUAN, lambda p, z: cache(p, z[0], "hunyuan_video"), raw, "raw"),
    "cache-framepack": (
        "hunyuan",
        HUNYUAN,
        lambda p, z: cache(p, z[0], "framepack"),
        factor,
        "scaling_factor",
    ),
    "plain-4": ("wan", WAN, lambda p, z: safetensors(p, {"x": z[0]}), wan, "--scale raw"),
    "plain-5": ("ltx", LTX, lambda p, z: safetensors(p, {"x": z}), ltx, "--scale raw"),
    "plain-named": (
        "ltx",
        LTX,
        lambda p, z: safetensors(p, {"latents": z, "mask": z + 1}),
        ltx,
        "safetensors",
    ),
    "plain-half": ("ltx", LTX, lambda p, z: safetensors(p, {"x": z.bfloat16()}), ltx, "safetensors"),
    "torch-tensor": ("wan", WAN, saved, wan, "torch.save"),
    "torch-dict": ("wan", WAN, lambda p, z: saved(p, {"frames": z, "seed": 1}), wan, "torch.save"),
    "torch-ordered": ("wan", WAN, lambda p, z: saved(p, OrderedDict(latents=[z])), wan, "torch.save"),
    "torch-set": ("wan", WAN, lambda p, z: saved(p, {"frames": z, "tags": {1, 2}}), wan, "torch.save"),
    "torch-parameter": ("wan", WAN, lambda p, z: saved(p, torch.nn.Parameter(z)), wan, "torch.save"),
    "torch-tuple": ("wan", WAN, lambda p, z: saved(p, (z, numbers(3))), wan, "first of 2 parts"),
    "torch-frames-first": ("svd", SVD, lambda p, z: saved(p, z.transpose(1, 2)), factor, "scaling_factor"),
    "torch-one": ("ltx", LTX, lambda p, z: saved(p, z[0]), ltx, "torch.save"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_the_vae_is_given_what_the_program_would_decode(
    open_latents: Open, vaes: dict[str, Any], tmp_path: Path, case: str
) -> None:
    model, shape, write, scaled, words = TAKEN[case]
    latents = numbers(*shape)
    if case.endswith("half"):
        latents = latents.bfloat16().float()
    found, said = open_latents(write(tmp_path / "file", latents), model)
    assert torch.allclose(found, scaled(vaes[model], latents), atol=1e-5)
    assert words in said


@pytest.mark.parametrize("write", [saved, lambda p, z: safetensors(p, {"x": z})])
def test_packed_latents_need_the_video_s_sides(
    open_latents: Open, vaes: dict[str, Any], tmp_path: Path, write: Callable[[Path, Tensor], Path]
) -> None:
    latents = numbers(1, 8, 3, 2, 4)
    path = write(tmp_path / "file", packed(latents))
    sides = {"width": 128, "height": 64, "frames": 17}
    found, _ = open_latents(path, "ltx", **sides)
    assert torch.allclose(found, ltx(vaes["ltx"], latents), atol=1e-5)
    for given, code, words in (
        ({}, "packed_without_shape", "--width, --height and --frames"),
        ({**sides, "frames": 25}, "wrong_shape", "24 tokens; 25 frames of 128x64 are 4 x 2 x 4 = 32"),
        ({**sides, "frames": 20}, "wrong_shape", "8k+1"),
        ({**sides, "width": 100}, "wrong_shape", "multiple of 32"),
    ):
        with pytest.raises(LatentsRejected, match=words.replace("+", "[+]")) as refusal:
            open_latents(path, "ltx", **given)
        assert refusal.value.code == code


def test_the_user_may_say_how_latents_are_scaled_and_is_told_what_a_file_has(
    open_latents: Open, vaes: dict[str, Any], tmp_path: Path
) -> None:
    latents = numbers(*WAN)
    path = safetensors(tmp_path / "file", {"x": latents})
    assert torch.equal(open_latents(path, "wan", scale="raw")[0], latents)
    assert "assumed" not in open_latents(path, "wan", scale="raw")[1]
    assert torch.allclose(
        open_latents(comfy(path, latents), "wan", scale="normalised")[0], wan(vaes["wan"], latents)
    )
    unknown = cache(tmp_path / "new", latents[0], "architecture_of_tomorrow")
    with pytest.raises(LatentsRejected, match="--scale") as refusal:
        open_latents(unknown, "wan")
    assert refusal.value.code == "scale_unknown"
    assert torch.equal(open_latents(unknown, "wan", scale="raw")[0], latents)
    with pytest.raises(LatentsRejected, match=r"9 frames of 32x32, not --width 64") as refusal:
        open_latents(path, "wan", width=64)


OUTPUTS = {
    "CogVideoXImageToVideoPipeline": {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 2.0},
    "LTX2ImageToVideoPipeline": {"stg_scale": 0.0, "audio_stg_scale": 0.0, **SIDES},
    "LTXImageToVideoPipeline": SIDES,
    "StableVideoDiffusionPipeline": {"height": 64, "width": 64, "num_frames": 3, "decode_chunk_size": 3},
    "WanImageToVideoPipeline": {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 2.0},
}


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
@pytest.mark.parametrize("pipeline", OUTPUTS)
def test_a_pipeline_s_latent_output_is_decoded_from_the_latents_that_it_would_decode_itself(
    pipeline: str, tmp_path: Path
) -> None:
    from app.latents import foreign
    from app.latents.foreign.layout import recorded_clip

    pipe, asked = tiny_pipelines.build(pipeline), {**OUTPUTS[pipeline]}
    if "frames" in asked:
        asked["num_frames"] = asked.pop("frames")
    if pipeline != "StableVideoDiffusionPipeline":
        asked["prompt"] = "a bear"
    asked |= {"image": Image.linear_gradient("L").resize((64, 64)).convert("RGB"), "num_inference_steps": 1}

    def run(output_type: str) -> Any:
        return pipe(**asked, output_type=output_type, generator=torch.Generator().manual_seed(1))

    for name, buffer in pipe.vae.named_buffers(
        recurse=False
    ):  # published checkpoints have other than 0 and 1
        if name in ("latents_mean", "latents_std"):
            buffer.copy_(numbers(len(buffer)).abs() + 0.5)
    with capture(pipe) as calls:
        run("pt")
    own = family_of(pipe.vae).as_video(calls[0].latents, calls[0].kwargs)
    output = run("latent")
    entry = load_models(Settings(data_dir=tmp_path))["tiny"].model_copy(
        update={"name": "it", "pipeline": pipeline, "vae_class": type(pipe.vae).__name__}
    )
    known = ModelTraits({"it": entry}, Settings(data_dir=tmp_path))
    given = Given(asked["width"], asked["height"], asked["num_frames"]) if "LTXI" in pipeline else Given()
    for value in (output, output.frames):
        found = foreign.read(saved(tmp_path / "latents.pt", value))
        assert found is not None
        clip, _ = recorded_clip(found, "latents.pt", entry, pipe.vae, given, known)
        latents = family_of(pipe.vae).as_video(clip.calls[0].latents, {})
        assert torch.allclose(latents, own.to(latents.dtype), atol=1e-4), (latents.shape, own.shape)


class Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (2**60,)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def old(path: Path) -> Path:
    torch.save(numbers(*LTX), path, _use_new_zipfile_serialization=False)
    return path


def archive(path: Path, pickled: bytes, *, compress: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
    return path


def shortened(path: Path) -> Path:
    """A file of torch.save whose tensor names more bytes than its part has."""
    parts = {}
    with zipfile.ZipFile(saved(path, numbers(*LTX))) as file:
        for name in file.namelist():
            content = file.read(name)
            parts[name] = content[:100] if name.endswith("data/0") else content
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
        file.writestr(f"{next(iter(parts)).split('/')[0]}/more", bytes(10_000))
    return path


def header(path: Path, document: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = json.dumps(document).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def cut(path: Path, count: int) -> Path:
    path.write_bytes(path.read_bytes()[:-count])
    return path


def huge(path: Path) -> Path:
    """A file of few bytes on disk whose header names more than the limit."""
    side = 2**11
    size = 8 * side * side * side * 4
    header(path, {"x": {"dtype": "F32", "shape": [1, 8, side, side, side], "data_offsets": [0, size]}})
    os.truncate(path, path.stat().st_size + size)
    return path


NAN = numbers(*LTX)
NAN[0, 0, 0, 0, :] = float("nan")
# The file, the code, and words of the refusal.
REFUSED: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "channels": (lambda p: comfy(p, numbers(*WAN)), "wrong_channels", r"takes 8 channels. It fits .*wan"),
    "no-model-has-them": (lambda p: saved(p, numbers(1, 7, 3, 2, 2)), "wrong_channels", "fits no model"),
    "turned": (lambda p: saved(p, numbers(1, 3, 8, 2, 2)), "wrong_channels", "takes 8 channels"),
    "another-model's": (lambda p: cache(p, numbers(8, 3, 2, 2), "wan"), "wrong_model", "AutoencoderKLWan"),
    "videos": (lambda p: saved(p, numbers(2, 8, 3, 2, 2)), "several_videos", r"latents\[0:1\]"),
    "not-finite": (lambda p: saved(p, NAN), "latents_not_finite", "2 of 96 values"),
    "whole-numbers": (lambda p: saved(p, torch.zeros(LTX, dtype=torch.int32)), "not_latents", "int32"),
    "six": (lambda p: saved(p, numbers(1, 1, *LTX)), "not_latents", "2 to 5 dimensions"),
    "empty": (lambda p: safetensors(p, {"x": torch.zeros(1, 8, 0, 2, 2)}), "not_latents", "shape"),
    "no-tensor": (lambda p: saved(p, {"prompt": "a bear", "seed": 3}), "no_latents", "prompt, seed"),
    "deep": (lambda p: saved(p, [[[[[[[numbers(*LTX)]]]]]]]), "no_latents", "list"),
    "many": (lambda p: safetensors(p, {"a": NAN, "b": NAN + 1}), "no_latents", "2 tensors"),
    "cache-of-none": (lambda p: safetensors(p, {"a": NAN}, architecture="wan"), "no_latents", "0 tensors"),
    "cache-of-another-shape": (
        lambda p: safetensors(p, {"latents_9x2x2_float32": numbers(8, 3, 2, 2)}, architecture="wan"),
        "damaged_file",
        "shape",
    ),
    "code": (lambda p: saved(p, Attack(p.with_name("mark"))), "unsafe_pickle", "posix.system"),
    "memory": (lambda p: saved(p, {"latents": NAN, "x": Bomb()}), "unsafe_pickle", "bytearray"),
    "far-sides": (
        lambda p: header(p, {"x": {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]}}),
        "damaged_file",
        "shape",
    ),
    "old": (old, "old_torch_file", "save it again"),
    "pickle": (lambda p: written(p, pickle.dumps([1])), "old_torch_file", "pickle"),
    "stretched": (lambda p: saved(p, numbers(1).expand(1, 8, 999, 99, 99)), "damaged_file", "fewer numbers"),
    "stretched-far": (lambda p: saved(p, numbers(1).expand(1, 8, 2**40, 9, 9)), "latents_too_large", "limit"),
    "compressed": (lambda p: archive(p, b"N.", compress=zipfile.ZIP_DEFLATED), "damaged_file", "compressed"),
    "long-pickle": (lambda p: archive(p, b"N" * (3 * 2**20)), "damaged_file", "data.pkl"),
    "no-pickle": (lambda p: archive(p, b"garbage"), "damaged_file", "cannot be loaded"),
    "short-part": (shortened, "damaged_file", "no part of the size"),
    "cut-archive": (lambda p: cut(saved(p, numbers(*LTX)), 30), "damaged_file", "whole file"),
    "cut": (lambda p: cut(safetensors(p, {"x": numbers(*LTX)}), 30), "damaged_file", "data to byte"),
    "long-header": (lambda p: header(p, {}, length=2**40), "damaged_file", "header of 1,099,511,627,776"),
    "bad-json": (
        lambda p: written(p, struct.pack("<Q", 4) + b"{[}]"),
        "damaged_file",
        "header",
    ),
    "nested": (
        lambda p: written(p, struct.pack("<Q", 90004) + b'{"":' + b"[" * 90000),
        "damaged_file",
        "header",
    ),
    "false-size": (
        lambda p: header(p, {"x": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 4]}}, b"1234"),
        "damaged_file",
        "4 bytes for shape",
    ),
    "negative": (
        lambda p: header(p, {"x": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, b"1234"),
        "damaged_file",
        "header",
    ),
    "eight-bits": (
        lambda p: header(p, {"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"1234"),
        "damaged_file",
        "F8_E4M3",
    ),
    "huge": (huge, "damaged_file", "the limit is"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_decoded_is_refused_with_a_code_and_runs_nothing(
    open_latents: Open, tmp_path: Path, case: str
) -> None:
    make, code, words = REFUSED[case]
    path = make(tmp_path / "file")
    with pytest.raises(LatentsRejected, match=words) as refusal:
        open_latents(path, "ltx")
    assert refusal.value.code == code
    assert str(refusal.value).endswith(f"[{code}]")
    assert not (tmp_path / "mark").exists()


def test_a_file_that_does_not_name_its_model_asks_for_it_and_names_those_that_fit(
    open_latents: Open, tmp_path: Path
) -> None:
    with pytest.raises(LatentsRejected, match=r"--model. It fits .*wan") as refusal:
        open_latents(comfy(tmp_path / "file", numbers(*WAN)), None)
    assert refusal.value.code == "model_needed"
    assert "ltx" not in str(refusal.value)


def test_the_command_decodes_says_how_it_scaled_and_ends_with_the_reason_if_it_cannot(
    framefit: Framefit, vaes: dict[str, Any], tmp_path: Path
) -> None:
    latents, out = numbers(*LTX), tmp_path / "out.safetensors"
    path = saved(tmp_path / "latents.pt", packed(latents))
    sides = ["--width", 64, "--height", 64, "--frames", 17]
    done = framefit("decode", path, "-o", out, "--model", "ltx", *sides)
    assert done.exit_code == 0, done.output
    assert "normalised: multiplied by latents_std" in done.output
    with torch.no_grad():
        expected = vaes["ltx"].decode(ltx(vaes["ltx"], latents)).sample
    with safe_open(out, framework="pt") as file:
        assert torch.allclose(file.get_tensor("frames"), expected, atol=1e-4)
    done = framefit("decode", path, "-o", tmp_path / "out.mp4", "--model", "ltx")
    assert (done.exit_code, "[packed_without_shape]" in done.output) == (1, True)
    done = framefit("decode", path, "-o", tmp_path / "out.mp4", "--model", "ltx", "--scale", "half")
    assert (done.exit_code, "'half'" in done.output) == (1, True)
    assert not (tmp_path / "out.mp4").exists()
