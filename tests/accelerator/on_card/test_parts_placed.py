"""Components from files of their own on a card: each placement computes the same."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from model_parts import Base, frames_of, loaded, make_base
from weight_files import names_for, write_fp8, write_gguf

from app.models.place_weights import place
from app.worker.idle_weights import IdleWeights

WRITERS: dict[str, Callable[..., object]] = {
    "q8.gguf": partial(write_gguf, kind=Kind.Q8_0),
    "scaled.safetensors": partial(write_fp8, scale_name="scale_weight"),
}
PLACEMENTS = ["group_offload", "model_offload", "drop_text_encoder", "resident"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base("LTXImageToVideoPipeline", tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("name", WRITERS)
def test_every_placement_of_quantized_components_computes_the_same(
    name: str, base: Base, device: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    WRITERS[name](path, base.transformer.state_dict(), named=names_for(base.transformer_class, "comfyui"))
    t5 = {
        key: each for key, each in base.component("text_encoder").state_dict().items() if "embed" not in key
    }
    write_fp8(tmp_path / "t5.safetensors", t5, lambda key: key, scale_name="weight_scale")
    settings, entry = base.entry(tmp_path, {"transformer": path, "text_encoder": tmp_path / "t5.safetensors"})
    pipe = loaded(settings, entry).pipe
    expected = frames_of(pipe)
    alone = loaded(settings, entry).pipe
    prompts = {
        kind: alone.encode_prompt(f"a bear, {kind}", do_classifier_free_guidance=False)[0]
        for kind in PLACEMENTS
    }
    stored = {key: each.clone() for key, each in pipe.transformer.named_parameters()}
    card = torch.device(device)
    for kind in PLACEMENTS:
        grouped = ["transformer", "text_encoder"] if kind == "group_offload" else []
        return_to_host = place(pipe, kind, card, grouped)
        for _ in range(2):
            assert (frames_of(pipe).cpu() - expected).abs().max() <= 1e-4, kind
            return_to_host()
        embedded = pipe.encode_prompt(f"a bear, {kind}", do_classifier_free_guidance=False, device=card)[0]
        return_to_host()
        assert (embedded.cpu() - prompts[kind]).abs().max() <= 1e-4, kind
        on_card = [key for key, each in pipe.transformer.named_parameters() if each.device.type != "cpu"]
        assert bool(on_card) == (kind == "resident"), (kind, on_card)
    idle = IdleWeights([pipe.transformer], card)  # as a decode that needs the memory moves them
    idle.drop()
    assert {each.device.type for each in pipe.transformer.parameters()} == {"cpu"}
    idle.restore(2**40)
    assert (frames_of(pipe).cpu() - expected).abs().max() <= 1e-4
    place(pipe, "model_offload", card)
    pipe.transformer.to("cpu")
    for key, each in pipe.transformer.named_parameters():
        assert each.dtype == stored[key].dtype
        assert torch.equal(each.detach().view(torch.uint8), stored[key].view(torch.uint8)), key
