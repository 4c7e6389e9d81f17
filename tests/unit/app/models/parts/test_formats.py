"""A transformer from a file gives the frames of the same weights dequantized, whatever the file's format."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from model_parts import Base, frames_of, loaded, make_base
from safetensors.torch import save_file
from torch import Tensor
from weight_files import names_for, write_fp8, write_gguf, write_safetensors

from app.models.components import components_of
from app.models.weight_sizes import component_sizes

LTX, WAN = "LTXImageToVideoPipeline", "WanImageToVideoPipeline"
Writer = Callable[..., dict[str, Tensor]]
GGUF: dict[str, Writer] = {
    f"{kind.name}.gguf": partial(write_gguf, kind=kind)
    for kind in (Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_K)
}
SAFETENSORS: dict[str, Writer] = {
    "float32.safetensors": write_safetensors,
    "fp8.safetensors": write_fp8,
    "e5m2.safetensors": partial(write_fp8, dtype=torch.float8_e5m2),
    "scale_weight.safetensors": partial(write_fp8, scale_name="scale_weight"),
    "weight_scale.safetensors": partial(write_fp8, scale_name="weight_scale"),
}
WRITERS = GGUF | SAFETENSORS
# The files of each family: each layout in GGUF and in safetensors. Names are a matter of the family, how a
# format computes is not.
CASES = {
    LTX: {
        ("F16.gguf", "original"),
        ("Q8_0.gguf", "comfyui"),
        ("Q4_0.gguf", "original"),
        ("Q4_K.gguf", "diffusers"),
        ("float32.safetensors", "comfyui"),
        ("fp8.safetensors", "original"),
        ("e5m2.safetensors", "diffusers"),
        ("scale_weight.safetensors", "comfyui"),
        ("weight_scale.safetensors", "original"),
    },
    WAN: {
        ("Q8_0.gguf", "original"),
        ("Q4_K.gguf", "comfyui"),
        ("fp8.safetensors", "diffusers"),
        ("scale_weight.safetensors", "original"),
    },
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    return cache(lambda pipeline: make_base(pipeline, tmp_path_factory.mktemp("base") / "model"))


def held_bytes(module: torch.nn.Module) -> int:
    """Bytes of the storages of all tensors, each once."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum({each.untyped_storage().data_ptr(): each.nbytes for each in tensors}.values())


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
@pytest.mark.parametrize(
    ("pipeline", "name", "layout"), [(each, *case) for each in CASES for case in sorted(CASES[each])]
)
def test_a_transformer_from_a_file_gives_the_frames_of_its_weights_dequantized(
    bases: Callable[[str], Base], pipeline: str, name: str, layout: str, tmp_path: Path
) -> None:
    base = bases(pipeline)
    path = tmp_path / name
    weights = {key: each * 1.25 for key, each in base.transformer.state_dict().items()}  # not the base's
    held = WRITERS[name](path, weights, named=names_for(base.transformer_class, layout))
    settings, entry = base.entry(tmp_path, {"transformer": path})
    with base.with_weights("transformer", held) as reference:
        expected = frames_of(reference)
    placed = loaded(settings, entry)
    frames = frames_of(placed.pipe)
    assert (frames - expected).abs().max() <= 1e-5
    assert not torch.isnan(frames).any()

    sizes = {size.name: size for size in component_sizes(components_of(entry, settings), entry.dtype)}
    predicted = sizes["transformer"].weight_bytes
    stored = sum(each.nbytes for each in weights.values())
    assert predicted < 0.75 * stored or name in ("F16.gguf", "float32.safetensors")  # as small as in the file
    assert predicted == pytest.approx(held_bytes(placed.pipe.transformer), rel=0.02)


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
@pytest.mark.parametrize("name", ["Q8_0.gguf", "fp8.safetensors", "scale_weight.safetensors"])
@pytest.mark.parametrize("pipeline", [LTX, WAN])
def test_half_precision_computes_as_the_dequantized_weights_in_it(
    bases: Callable[[str], Base], pipeline: str, name: str, tmp_path: Path
) -> None:
    """With what the class wants in float32 in float32, as from a folder."""
    base, path = bases(pipeline), tmp_path / name
    weights = {key: each * 1.25 for key, each in base.transformer.state_dict().items()}
    held = WRITERS[name](path, weights, named=names_for(base.transformer_class, "original"))
    with base.with_weights("transformer", held, torch.bfloat16) as reference:
        expected = frames_of(reference)
        dtype = reference.transformer.dtype
    pipe = loaded(*base.entry(tmp_path, {"transformer": path}, dtype="bfloat16")).pipe
    assert pipe.transformer.dtype == dtype
    assert torch.equal(frames_of(pipe), expected)


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
def test_a_file_of_several_components_gives_each_its_own(
    bases: Callable[[str], Base], tmp_path: Path
) -> None:
    base, path = bases(LTX), tmp_path / "all.safetensors"
    weights = {key: each * 1.25 for key, each in base.transformer.state_dict().items()}
    named = names_for(base.transformer_class, "comfyui")
    vae = {key: each.clone() for key, each in base.component("vae").state_dict().items()}
    vae["decoder.conv_out.conv.weight"] *= 2
    everything = {named(key): each for key, each in weights.items()}
    save_file(everything | {f"vae.{key}": each for key, each in vae.items()}, path)
    pipe = loaded(*base.entry(tmp_path, {"transformer": path, "vae": path})).pipe
    with base.with_weights("transformer", weights) as reference, base.with_weights("vae", vae):
        assert torch.equal(frames_of(pipe), frames_of(reference))
