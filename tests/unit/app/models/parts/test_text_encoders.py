"""Text encoders, image encoders and VAEs from single files: the same prompt embeddings, images and frames."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from model_parts import Base, frames_of, loaded, make_base
from safetensors.torch import load_file, save_file
from torch import Tensor
from weight_files import write_fp8, write_gguf, write_safetensors

from app.jobs import JobSpec
from app.models.checks.model_folder import check_model
from app.models.components import ModelUnavailable, components_of
from app.models.loading import load_vae
from app.models.parts.assembly import described
from app.models.parts.part import open_part
from app.models.weight_sizes import component_sizes
from app.worker.denoise.identity import checkpoint_identity

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base("LTXImageToVideoPipeline", tmp_path_factory.mktemp("base") / "model")


def as_is(name: str) -> str:
    return name


def in_gguf(name: str) -> str:
    """The name of a tensor of T5 in llama.cpp's files."""
    stem, _, suffix = name.rpartition(".")
    found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, 1).get_name(stem)
    assert found is not None, name
    return f"{found}.{suffix}"


def t5_weights(base: Base) -> dict[str, Tensor]:
    """The encoder's weights, each once, other than those in the folder."""
    state = base.component("text_encoder").state_dict()
    return {name: each * 1.25 for name, each in state.items() if name != "encoder.embed_tokens.weight"}


def embeddings_of(pipe: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = pipe.encode_prompt("a bear", do_classifier_free_guidance=False)[0]
    return found


def sizes(settings: Any, entry: Any) -> dict[str, int]:
    found = component_sizes(
        components_of(entry, settings), entry.dtype, entry.vae_dtype, entry.text_encoder_dtype
    )
    return {size.name: size.weight_bytes for size in found}


def held_bytes(module: torch.nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum({each.untyped_storage().data_ptr(): each.nbytes for each in tensors}.values())


T5_FILES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "plain.safetensors": partial(write_safetensors, named=as_is),
    "scaled.safetensors": partial(write_fp8, named=as_is, scale_name="scale_weight"),
    "q8.gguf": partial(write_gguf, named=in_gguf, kind=Kind.Q8_0, architecture="t5encoder"),
}


@pytest.mark.parametrize("name", T5_FILES)
def test_a_text_encoder_from_a_file_embeds_as_its_weights_dequantized(
    base: Base, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    held = T5_FILES[name](path, t5_weights(base))
    settings, entry = base.entry(tmp_path, {"text_encoder": path})
    held["encoder.embed_tokens.weight"] = held["shared.weight"]
    with base.with_weights("text_encoder", held) as reference:
        expected = embeddings_of(reference)
    pipe = loaded(settings, entry).pipe
    assert (embeddings_of(pipe) - expected).abs().max() <= 1e-5
    predicted = sizes(settings, entry)["text_encoder"]
    assert predicted == pytest.approx(held_bytes(pipe.text_encoder), rel=0.02)
    assert frames_of(pipe).isfinite().all()


def test_a_text_encoder_of_another_size_is_found_from_its_header(base: Base, tmp_path: Path) -> None:
    settings, entry = base.entry(tmp_path, {"text_encoder": tmp_path / "t5.gguf"})
    weights = t5_weights(base)
    write_t5 = partial(write_gguf, named=in_gguf, kind=Kind.Q8_0, architecture="t5encoder")
    write_t5(tmp_path / "t5.gguf", {**weights, "shared.weight": weights["shared.weight"][:64]})
    with pytest.raises(
        ModelUnavailable, match=r"another size of T5EncoderModel .* shape \(64, 32\), the base"
    ):
        sizes(settings, entry)
    del weights["encoder.final_layer_norm.weight"]
    (tmp_path / "t5.gguf").unlink()
    write_t5(tmp_path / "t5.gguf", weights)
    with pytest.raises(ModelUnavailable, match=r"1 of \d+ tensors are missing, such as encoder\.final_layer"):
        sizes(settings, entry)


def test_a_gguf_text_encoder_of_more_layers_is_found_from_its_header(base: Base, tmp_path: Path) -> None:
    weights = {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(2, 2), **t5_weights(base)}

    def with_another(name: str) -> str:
        return "enc.blk.9.attn_q.weight" if name == "another" else in_gguf(name)

    path = tmp_path / "t5.gguf"
    settings, entry = base.entry(tmp_path, {"text_encoder": path})
    another = {**weights, "another": torch.zeros(32, 32)}
    write_gguf(path, another, named=with_another, kind=Kind.Q8_0, architecture="t5encoder")
    with pytest.raises(ModelUnavailable, match=r"no place for 1 of its tensors, such as enc\.blk\.9\.attn_q"):
        sizes(settings, entry)


LANGUAGE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 128}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
VISION = {"hidden_size": 16, "intermediate_size": 32}
CLIP = {**VISION, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
WITHOUT_GGUF: dict[str, dict[str, Any]] = {
    "LlavaForConditionalGeneration": {
        "text_config": {"model_type": "llama", **LANGUAGE, **HEADS},
        "vision_config": {"model_type": "clip_vision_model", **CLIP},
    },
    "Gemma3ForConditionalGeneration": {
        "text_config": {"head_dim": 16, **LANGUAGE, **HEADS},
        "vision_config": CLIP,
    },
    "Qwen2_5_VLTextModel": {**LANGUAGE, **HEADS},
}


@pytest.mark.parametrize("class_name", WITHOUT_GGUF)
def test_a_gguf_text_encoder_that_transformers_cannot_load_is_found_from_its_header(
    class_name: str, tmp_path: Path
) -> None:
    path = tmp_path / "llm.gguf"
    write_gguf(path, {"token_embd.weight": torch.zeros(128, 32)}, kind=Kind.Q8_0, named=as_is)
    with pytest.raises(ModelUnavailable, match=f"not load as a {class_name}: GGUF is loaded for T5 and UMT5"):
        described(
            "transformers", class_name, WITHOUT_GGUF[class_name], open_part("text_encoder", path, "float32")
        )


def test_a_checkpoint_is_not_used_with_other_scales_or_another_file(base: Base, tmp_path: Path) -> None:
    path, text = tmp_path / "t.safetensors", tmp_path / "t5.safetensors"
    write_fp8(path, base.transformer.state_dict(), as_is, scale_name="scale_weight")
    write_safetensors(text, t5_weights(base), as_is)
    settings, entry = base.entry(tmp_path, {"transformer": path, "text_encoder": text})
    spec = JobSpec(
        **{"prompt": "a bear", "model": "small", "width": 64, "height": 64, "num_frames": 9, "fps": 8},
        **{"num_inference_steps": 2, "guidance_scale": 2.0, "seed": 5},
    )

    def identity() -> dict[str, str]:
        return checkpoint_identity(loaded(settings, entry).pipe, entry, torch.device("cpu"), spec, b"")

    before = identity()
    assert identity() == before
    scaled = {
        name: each.clone() * (2 if name.endswith("scale_weight") else 1)
        if each.dtype == torch.float32
        else each
        for name, each in load_file(path).items()
    }
    save_file(scaled, path)
    doubled = identity()
    assert doubled["weights"] != before["weights"]
    write_safetensors(text, {name: each * 2 for name, each in t5_weights(base).items()}, as_is)
    assert identity()["model"] != doubled["model"]


def test_a_text_encoder_computes_in_a_dtype_of_its_own(base: Base, tmp_path: Path) -> None:
    path = tmp_path / "t5.safetensors"
    save_file({name: each.contiguous() for name, each in t5_weights(base).items()}, path)
    lines: dict[str, object] = {"text_encoder": path, "text_encoder_dtype": "float32"}
    settings, entry = base.entry(tmp_path, lines, dtype="bfloat16")
    pipe = loaded(settings, entry).pipe
    assert (pipe.text_encoder.dtype, pipe.transformer.dtype) == (torch.float32, torch.bfloat16)
    assert embeddings_of(pipe).dtype == torch.bfloat16  # as the transformer takes them
    assert frames_of(pipe).isfinite().all()
    assert sizes(settings, entry)["text_encoder"] == held_bytes(pipe.text_encoder)


def test_a_text_encoder_of_the_base_has_the_dtype_that_the_entry_gives_it(base: Base, tmp_path: Path) -> None:
    settings, entry = base.entry(tmp_path, {"text_encoder_dtype": "float32"}, dtype="bfloat16")
    pipe = loaded(settings, entry).pipe
    assert (pipe.text_encoder.dtype, pipe.transformer.dtype) == (torch.float32, torch.bfloat16)
    assert sizes(settings, entry)["text_encoder"] == held_bytes(pipe.text_encoder)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_vae_from_a_file_or_a_folder_is_the_one_that_decodes(base: Base, form: str, tmp_path: Path) -> None:
    vae = base.component("vae")
    weights = {name: each.clone() for name, each in vae.state_dict().items()}
    weights["decoder.conv_out.conv.weight"] *= 2
    vae.load_state_dict(weights)
    path = tmp_path / ("vae.safetensors" if form == "file" else "vae")
    if form == "file":
        save_file(weights, path)
    else:
        vae.save_pretrained(path)
    settings, entry = base.entry(tmp_path, {"vae": path})
    pipe = loaded(settings, entry).pipe
    with base.with_weights("vae", weights) as reference:
        assert torch.equal(frames_of(pipe), frames_of(reference))
    _, entry = base.entry(tmp_path, {"vae": path, "transformer": tmp_path / "not_needed_to_decode.gguf"})
    alone = load_vae(entry, settings).state_dict()
    assert torch.equal(alone["decoder.conv_out.conv.weight"], weights["decoder.conv_out.conv.weight"])


def test_a_base_without_the_weights_of_a_component_that_the_entry_names(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder needs no transformer, which is most of a model's bytes. Nothing is asked of the network."""

    def refused(*_: object) -> None:
        raise AssertionError("something was asked of the network")

    monkeypatch.setattr("socket.socket.connect", refused)
    path = tmp_path / "t.safetensors"
    weights = base.transformer.state_dict()
    write_safetensors(path, weights, as_is)
    thin = Base(base.pipeline, tmp_path / "thin")
    shutil.copytree(base.folder, thin.folder)
    (thin.folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    settings, entry = thin.entry(tmp_path, {"transformer": path})
    check_model(entry, settings)
    with base.with_weights("transformer", weights) as reference:
        assert torch.equal(frames_of(loaded(settings, entry).pipe), frames_of(reference))


def test_an_image_encoder_from_a_file_is_loaded(tmp_path: Path) -> None:
    wan = make_base("WanImageToVideoPipeline", tmp_path / "wan")
    weights = {name: each * 1.25 for name, each in wan.component("image_encoder").state_dict().items()}
    path = tmp_path / "clip_vision.safetensors"
    save_file({f"vision_model.{name}": each for name, each in weights.items()}, path)  # as ComfyUI's files
    settings, entry = wan.entry(tmp_path, {"image_encoder": path})
    with wan.with_weights("image_encoder", weights) as reference:
        assert torch.equal(frames_of(loaded(settings, entry).pipe), frames_of(reference))
