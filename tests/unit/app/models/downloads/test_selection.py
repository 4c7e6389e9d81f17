"""Which files are downloaded: the same that diffusers itself fetches from a hub on this machine."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from fake_hub import Repository, commit_of, running_hub, use_here

from app.models.downloads.selection import NoSuchVariant, select_files

INDEX = {
    "_class_name": "StableVideoDiffusionPipeline",
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": [None, None],
}
FEW = (
    *("README.md", ".gitattributes", "a.png", "svd_xt.safetensors", "model_index.json"),
    *("scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json"),
    *("unet/config.json", "vae/config.json", "image_encoder/config.json", "docs/config.json"),
)


def shards(folder: str, stem: str, ending: str, variant: str = "") -> tuple[str, ...]:
    dotted = f".{variant}" if variant else ""
    names = (f"{folder}/{stem}{dotted}-0000{number}-of-00002.{ending}" for number in (1, 2))
    return (*names, f"{folder}/{stem}.{ending}.index{dotted}.json")


def weights(ending: str, variant: str = "", *, text: str = "model") -> tuple[str, ...]:
    dotted = f".{variant}" if variant else ""
    of_diffusers = (f"{part}/diffusion_pytorch_model{dotted}.{ending}" for part in ("unet", "vae"))
    return (*of_diffusers, f"image_encoder/{text}{dotted}.{ending}")


CASES = {
    "safetensors": (weights("safetensors"), None),
    "both": ((*weights("safetensors"), *weights("bin", text="pytorch_model")), None),
    "bin only": (weights("bin", text="pytorch_model"), None),
    "one component in bin only": (
        (*weights("safetensors")[:2], *weights("bin", text="pytorch_model")),
        None,
    ),
    "variant beside": ((*weights("safetensors"), *weights("safetensors", "fp16")), "fp16"),
    "variant not asked for": ((*weights("safetensors"), *weights("safetensors", "fp16")), None),
    "variant of one component": (
        (*weights("safetensors"), "unet/diffusion_pytorch_model.fp16.safetensors"),
        "fp16",
    ),
    "shards": (
        (*shards("unet", "diffusion_pytorch_model", "safetensors"), *weights("safetensors")[1:]),
        None,
    ),
    "shards of a variant beside whole files": (
        (
            *shards("unet", "diffusion_pytorch_model", "safetensors", "fp16"),
            *shards("unet", "diffusion_pytorch_model", "safetensors"),
            *shards("image_encoder", "pytorch_model", "bin"),
            *weights("safetensors"),
        ),
        "fp16",
    ),
    "names of variants as they once were": (
        (
            "unet/diffusion_pytorch_model-00001-of-00002.fp16.bin",
            "unet/diffusion_pytorch_model-00002-of-00002.fp16.bin",
            "unet/diffusion_pytorch_model.bin.fp16.index.json",
            *weights("bin", text="pytorch_model")[1:],
        ),
        "fp16",
    ),
    "other formats": (
        (*weights("safetensors"), "unet/model.onnx", "unet/weights.pb", "vae/flax_model.msgpack", "vae/x.py"),
        None,
    ),
    "a file of its own name": ((*weights("safetensors"), "unet/other.safetensors", "vae/ema.bin"), None),
    "files at the root": ((*weights("safetensors"), "tokenizer.json", "config.json"), None),
}


@pytest.mark.parametrize(("names", "variant"), CASES.values(), ids=CASES)
def test_what_is_chosen_is_what_diffusers_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], variant: str | None
) -> None:
    files = dict.fromkeys((*FEW, *names), b"{}")
    files["model_index.json"] = json.dumps(INDEX).encode()
    with running_hub() as hub:
        hub.repositories["some/body"] = Repository(files, commit_of(files))
        use_here(hub, tmp_path, monkeypatch)
        folder = DiffusionPipeline.download("some/body", variant=variant, cache_dir=tmp_path)
    downloaded = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
    assert select_files(files, INDEX, variant) == downloaded


@pytest.mark.parametrize("parts", [("unet",), ("unet", "image_encoder"), ("vae", "image_encoder", "unet")])
def test_of_components_from_other_files_only_the_configuration_comes_in_addition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...]
) -> None:
    names, variant = CASES["shards of a variant beside whole files"]
    files = dict.fromkeys((*FEW, *names), b"{}")
    files["model_index.json"] = json.dumps(INDEX).encode()
    with running_hub() as hub:
        hub.repositories["some/body"] = Repository(files, commit_of(files))
        use_here(hub, tmp_path, monkeypatch)
        given = dict.fromkeys(parts, torch.nn.Identity())
        folder = DiffusionPipeline.download("some/body", variant=variant, cache_dir=tmp_path, **given)
    downloaded = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
    configurations = {f"{part}/config.json" for part in parts}
    assert not downloaded & configurations
    assert select_files(files, INDEX, variant, parts) == downloaded | configurations


def test_a_variant_that_no_component_has_is_refused_as_diffusers_does() -> None:
    with pytest.raises(NoSuchVariant, match="no files of its variant 'fp8'"):
        select_files((*FEW, *weights("safetensors")), INDEX, "fp8")
