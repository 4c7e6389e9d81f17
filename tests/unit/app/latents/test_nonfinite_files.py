"""The commands refuse values that are not finite, by number, and decode half precision again in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encode_clips import write_clip
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import Result

from adaptive.pipelines import checksum
from adaptive.testing import small_ltx_vae
from tests.unit.app.latents.conftest import MODEL

Framefit = Callable[..., Result]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framefit: Framefit) -> Callable[..., Any]:
    """Offers a VAE of its own as the model `mine`; returns it."""
    del framefit  # sets its variables first

    def offer(dtype: str, spoil: Callable[[Any], None]) -> Any:
        vae = small_ltx_vae()
        with torch.no_grad():
            spoil(vae)
        vae.to(getattr(torch, dtype)).save_pretrained(tmp_path / "mine" / "vae")
        entry = MODEL.format(
            name="mine",
            pipeline="LTXImageToVideoPipeline",
            source=tmp_path / "mine",
            vae_class="AutoencoderKLLTXVideo",
            multiple=32,
            ratio=8,
            alone="true",
            frames=9,
        ).replace('dtype = "float32"', f'dtype = "{dtype}"')
        (tmp_path / "models.toml").write_text(entry)
        monkeypatch.setenv("FRAMEFIT_MODELS_FILE", str(tmp_path / "models.toml"))
        return vae

    return offer


def encoded(framefit: Framefit, folder: Path) -> Path:
    clip = write_clip(folder / "clip.mkv", 9)
    assert framefit("encode", clip, "--model", "mine", "-o", folder / "l.safetensors").exit_code == 0
    return folder / "l.safetensors"


def replace_latents(path: Path, latents: torch.Tensor) -> None:
    with safe_open(path, "pt") as file:
        header = {name: value for name, value in file.metadata().items() if name != checksum.FIELD}
    save_file({"latents": latents}, path, header)


def test_a_file_with_broken_latents_is_not_decoded(
    framefit: Framefit, model: Callable[..., Any], tmp_path: Path
) -> None:
    model("float32", lambda _vae: None)
    path = encoded(framefit, tmp_path)
    latents = load_file(path)["latents"]
    latents[0, 0, 0, 0, :2] = torch.nan
    replace_latents(path, latents)
    done = framefit("decode", path, "-o", tmp_path / "out.mp4")
    assert done.exit_code == 1
    assert f"2 of {latents.numel():,} values of the latents are not finite" in done.output
    assert not (tmp_path / "out.mp4").exists()


def test_a_clip_that_encodes_to_broken_latents_leaves_no_file(
    framefit: Framefit, model: Callable[..., Any], tmp_path: Path
) -> None:
    def spoil(vae: Any) -> None:
        vae.encoder.conv_in.conv.weight[0, 0, 0, 0, 0] = torch.nan

    model("float32", spoil)
    clip = write_clip(tmp_path / "clip.mkv", 9)
    done = framefit("encode", clip, "--model", "mine", "-o", tmp_path / "l.safetensors")
    assert done.exit_code == 1
    assert "values of the latents are not finite" in done.output
    assert not (tmp_path / "l.safetensors").exists()


def test_a_file_that_overflows_in_half_precision_is_decoded_in_float32_which_is_told_first(
    framefit: Framefit, model: Callable[..., Any], tmp_path: Path
) -> None:
    def spoil(vae: Any) -> None:
        vae.decoder.conv_in.conv.weight.mul_(3e5)

    vae = model("float16", spoil).float()
    path, out = encoded(framefit, tmp_path), tmp_path / "frames.safetensors"
    replace_latents(path, load_file(path)["latents"] * 50)
    done = framefit("decode", path, "-o", out)
    assert done.exit_code == 0, done.output
    told = done.output.index("not finite (NaN or infinite) in float16; decoding again in float32")
    assert told < done.output.index("Decoded in float32, because in float16")
    latents = load_file(path)["latents"].float()
    with torch.no_grad():
        expected = vae.decode(latents, return_dict=False)[0]
    found = load_file(out)["frames"]
    assert found.dtype is torch.float32
    assert (found - expected).abs().max() < 1e-3


def test_a_file_that_is_broken_in_float32_too_is_refused(
    framefit: Framefit, model: Callable[..., Any], tmp_path: Path
) -> None:
    def spoil(vae: Any) -> None:
        vae.decoder.conv_out.conv.bias[0] = torch.nan

    model("float16", spoil)
    path = encoded(framefit, tmp_path)
    done = framefit("decode", path, "-o", tmp_path / "out.mp4")
    assert done.exit_code == 1
    assert done.output.count("are not finite") == 2
    assert not (tmp_path / "out.mp4").exists()
