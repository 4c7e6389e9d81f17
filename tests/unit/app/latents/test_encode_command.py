"""`framefit encode`, and `framefit decode` of what it wrote: the VAE's own numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from encode_clips import pixels, write_clip
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import Result

Framefit = Callable[..., Result]


def read(path: Path, name: str = "latents") -> tuple[Tensor, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name), file.metadata() or {}


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> bool:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item() <= tolerance


def mean_of(vae: Any, video: Tensor) -> Tensor:
    with torch.no_grad():
        posterior: Tensor = vae.encode(video).latent_dist.mean
    return posterior


def by_channel(values: Tensor | list[float]) -> Tensor:
    return torch.as_tensor(values).view(1, -1, 1, 1, 1)


@pytest.mark.parametrize("way", [[], ["--frames-per-chunk", 8], ["--strategy", "per_frame"]])
def test_latents_are_the_vae_s_own_normalised_as_the_pipeline_does(
    framefit: Framefit, vaes: dict[str, Any], tmp_path: Path, way: list[object]
) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv", 25), tmp_path / "out.safetensors"
    done = framefit("encode", clip, "--model", "ltx", "-o", out, *way)
    assert done.exit_code == 0, done.output
    found, metadata = read(out)
    vae = vaes["ltx"]
    # As in LTXImageToVideoPipeline._normalize_latents.
    expected = (mean_of(vae, pixels(range(25))) - by_channel(vae.latents_mean)) / by_channel(vae.latents_std)
    assert close(found, expected)
    assert (metadata["model"], metadata["normalised"]) == ("ltx", "per_channel")
    assert (metadata["frames"], metadata["fps"], metadata["clip"]) == ("25", "24", "clip.mkv")


def test_a_crop_is_where_gravity_says_and_is_told(framefit: Framefit, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv", 9), tmp_path / "out.safetensors"
    sides = ("--width", 32, "--height", 64)
    done = framefit("encode", clip, "--model", "ltx", "-o", out, *sides, "--gravity", "west")
    assert done.exit_code == 0, done.output
    assert "is cropped to 32x64:" in done.output
    assert "at the right" in done.output
    assert "at the left" not in done.output
    done = framefit("encode", clip, "--model", "ltx", "-o", out, *sides, "--fit", "contain", "--overwrite")
    assert "is shown whole in 32x64, with bars of" in done.output
    refused = framefit("encode", clip, "--model", "ltx", "-o", out, *sides, "--fit", "crop", "--overwrite")
    assert refused.exit_code == 1
    assert "fit must be one of cover, contain, stretch, got 'crop'" in refused.output


def test_what_is_cut_from_a_clip_that_is_not_scaled_is_told(framefit: Framefit, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv", 9, size=(76, 70)), tmp_path / "out.safetensors"
    done = framefit("encode", clip, "--model", "ltx", "-o", out)
    assert done.exit_code == 0, done.output
    cuts = "6 pixels at the left, 3 pixels at the top, 6 pixels at the right, 3 pixels at the bottom"
    assert f"76x70 is cropped to 64x64: {cuts} are cut (23 % of the image)" in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("fps", "1/0"), ("fps", "0"), ("fps", "-24"), ("fps", "nan"), ("scale", "[]"), ("scale", '{"mean": 5}')],
)
def test_a_file_of_latents_with_a_damaged_header_is_refused(
    framefit: Framefit, tmp_path: Path, name: str, value: str
) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv", 9), tmp_path / "out.safetensors"
    assert framefit("encode", clip, "--model", "ltx", "-o", out).exit_code == 0
    latents, metadata = read(out)
    save_file({"latents": latents}, out, {**metadata, name: value})
    done = framefit("decode", out, "--model", "ltx", "-o", tmp_path / "out.mp4")
    assert (done.exit_code, isinstance(done.exception, SystemExit)) == (1, True)
    assert "out.safetensors has a damaged header" in done.output


def test_raw_latents_are_not_normalised(framefit: Framefit, vaes: dict[str, Any], tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv", 9), tmp_path / "out.safetensors"
    assert framefit("encode", clip, "--model", "ltx", "-o", out, "--raw").exit_code == 0
    found, metadata = read(out)
    assert close(found, mean_of(vaes["ltx"], pixels(range(9))))
    assert metadata["normalised"] == "raw"


def _wan(latents: Tensor, config: Any) -> Tensor:
    """As WanImageToVideoPipeline does with the condition's latents."""
    return (latents - by_channel(config.latents_mean)) * (1.0 / by_channel(config.latents_std))


@pytest.mark.parametrize(
    ("model", "normalised"),
    [
        ("wan", _wan),
        ("svd", lambda latents, config: latents * config.scaling_factor),
        ("hunyuan", lambda latents, config: latents * config.scaling_factor),
    ],
)
def test_each_model_normalises_in_its_own_way(
    framefit: Framefit, vaes: dict[str, Any], tmp_path: Path, model: str, normalised: Any
) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv", 9), tmp_path / "out.safetensors"
    done = framefit("encode", clip, "--model", model, "-o", out)
    assert done.exit_code == 0, done.output
    vae, video = vaes[model], pixels(range(9))
    if model == "svd":  # takes pictures
        mean = mean_of(vae, video[0].transpose(0, 1)).transpose(0, 1)[None]
    else:
        mean = mean_of(vae, video)
    assert close(read(out)[0], normalised(mean, vae.config))


def test_what_was_encoded_decodes_to_what_the_vae_makes_of_its_own_latents(
    framefit: Framefit, vaes: dict[str, Any], tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 25, fps=Fraction(30000, 1001))
    latents, raw, video = (tmp_path / name for name in ("l.safetensors", "raw.safetensors", "out.mp4"))
    assert framefit("encode", clip, "--model", "ltx", "-o", latents, "--frames-per-chunk", 8).exit_code == 0
    for out, options in ((raw, ["--model", "ltx"]), (video, [])):
        done = framefit("decode", latents, "-o", out, "--frames-per-chunk", 1, *options)
        assert done.exit_code == 0, done.output
    vae = vaes["ltx"]
    with torch.no_grad():
        expected = vae.decode(mean_of(vae, pixels(range(25)))).sample
    assert close(read(raw, "frames")[0], expected)
    with av.open(str(video)) as file:
        assert file.streams.video[0].average_rate == Fraction(30000, 1001)
        assert sum(1 for _ in file.decode(video=0)) == 25


def test_frames_beyond_what_the_vae_can_encode_are_left_out_and_that_is_said(
    framefit: Framefit, vaes: dict[str, Any], tmp_path: Path
) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv", 22), tmp_path / "out.safetensors"
    done = framefit("encode", clip, "--model", "ltx", "-o", out, "--raw")
    assert "17 frames" in done.output
    assert "last 5 of 22 frames are left out" in done.output
    assert close(read(out)[0], mean_of(vaes["ltx"], pixels(range(17))))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--frames", 20], "8k+1 frames, not 20"),
        (["--frames", 33], "has 25 frames; 33 were requested"),
        (["--width", 50], "multiple of 32, got 50"),
        (["--fps", "fast"], "'fast'"),
        (["--strategy", "quick"], "'quick'"),
        (["--strategy", "batched", "--frames-per-chunk", 8], "excludes frames_per_chunk 8"),
        (["--budget", "1KB"], "needs"),
        (["--model", "nobody"], "nobody"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason_and_leaves_nothing(
    framefit: Framefit, tmp_path: Path, options: list[object], words: str
) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 25)
    done = framefit("encode", clip, "-o", tmp_path / "out.safetensors", "--model", "ltx", *options)
    assert done.exit_code
    assert words in f"{done.output} {done.exception}"
    assert not list(tmp_path.glob("out*"))


def test_a_budget_makes_chunks_smaller_and_changes_nothing_else(framefit: Framefit, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 33)
    free, tight = tmp_path / "free.safetensors", tmp_path / "tight.safetensors"
    assert "in one call" in framefit("encode", clip, "--model", "ltx", "-o", free).output
    done = framefit("encode", clip, "--model", "ltx", "-o", tight, "--budget", "14MB")
    assert done.exit_code == 0, done.output
    assert "about 16 frames" in done.output
    assert close(read(tight)[0], read(free)[0])


def test_a_rate_picks_the_frame_that_is_shown_at_each_moment(
    framefit: Framefit, vaes: dict[str, Any], tmp_path: Path
) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv", 18), tmp_path / "out.safetensors"
    assert framefit("encode", clip, "--model", "ltx", "-o", out, "--fps", 12, "--raw").exit_code == 0
    found, metadata = read(out)
    assert metadata["fps"] == "12"
    assert close(found, mean_of(vaes["ltx"], pixels(range(0, 18, 2))))


def test_a_folder_of_clips_becomes_a_folder_of_latents(framefit: Framefit, tmp_path: Path) -> None:
    clips, out = tmp_path / "clips", tmp_path / "latents"
    (clips / "more").mkdir(parents=True)
    write_clip(clips / "a.mkv", 9)
    write_clip(clips / "more" / "b.mp4", 9)
    (clips / "c.mp4").write_bytes(b"no video at all")
    (clips / "notes.txt").touch()
    done = framefit("encode", clips, "--model", "ltx", "-o", out)
    assert done.exit_code == 1
    assert "c.mp4 cannot be read" in done.output
    assert "(clip_unreadable)" in done.output
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == ["a.safetensors", "more/b.safetensors"]
    before = (out / "a.safetensors").stat().st_mtime_ns
    (clips / "c.mp4").unlink()
    again = framefit("encode", clips, "--model", "ltx", "-o", out)
    assert again.exit_code == 0
    assert "2 clips are encoded already" in again.output
    assert (out / "a.safetensors").stat().st_mtime_ns == before
    (clips / "a.mp4").touch()
    assert "would both be written to" in framefit("encode", clips, "--model", "ltx", "-o", out).output


def test_latents_of_a_model_that_is_not_known_here_name_it(framefit: Framefit, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv", 9), tmp_path / "out.safetensors"
    framefit("encode", clip, "--model", "ltx", "-o", out)
    out.write_bytes(out.read_bytes().replace(b'"model": "ltx"', b'"model": "xyz"'))
    done = framefit("decode", out, "-o", tmp_path / "out.mp4")
    assert "xyz" in f"{done.output} {done.exception}"
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"nothing of the kind")
    assert "not a safetensors file" in framefit("decode", other, "-o", tmp_path / "out.mp4").output


def test_chunks_that_would_hold_the_whole_clip_are_refused(framefit: Framefit, tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "clip.mkv", 25), tmp_path / "out.safetensors"
    framefit("encode", clip, "--model", "ltx", "-o", out)
    forced = ["--strategy", "chunked", "--frames-per-chunk", 99]
    done = framefit("decode", out, "-o", tmp_path / "out.mp4", *forced)
    assert done.exit_code == 1
    assert "chunks of 99" in done.output


def test_encode_and_decode_print_what_they_did_as_json(framefit: Framefit, tmp_path: Path) -> None:
    clip, latents, out = (tmp_path / name for name in ("clip.mkv", "out.safetensors", "out.mp4"))
    write_clip(clip, 9)
    done = framefit("encode", clip, "--model", "ltx", "-o", latents, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["failed"], told["skipped"]) == ([], 0)
    (encoded,) = told["encoded"]
    assert (encoded["clip"], encoded["out"], encoded["frames"]) == (str(clip), str(latents), 9)
    again = json.loads(framefit("encode", tmp_path, "--model", "ltx", "-o", tmp_path, "--json").stdout)
    assert again == {
        "encoded": [encoded | {"out": str(tmp_path / "clip.safetensors")}],
        "failed": [],
        "skipped": 0,
    }
    done = framefit("decode", latents, "-o", out, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["out"] == str(out)
    assert (told["decode"]["strategy"], told["decode"]["exact"]) == ("batched", True)
