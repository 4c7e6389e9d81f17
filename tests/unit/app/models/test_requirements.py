"""What denoising needs, traced from configurations: as real runs count it, at any shape, judged by stages."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from adaptive.memory.denoise_costs import DenoiseCosts
from adaptive.memory.live_bytes import trace_peak
from adaptive.planning.weight_placement import ComponentSize, Stage
from adaptive.types import LatentShape, MeasuredPeak
from app.config import Settings
from app.models import profiles
from app.models.checks.faults import Fault, record_fault
from app.models.components import Component
from app.models.denoiser_memory import CALLS, step_bytes, trace_curve
from app.models.entries import load_models
from app.models.requirements import DenoiseCurve, ModelRequirements

GIB = 2**30
TINY: dict[str, dict[str, Any]] = {
    "LTXVideoTransformer3DModel": {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "num_layers": 2,
        "caption_channels": 16,
    },
    "WanTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 36,
        "out_channels": 16,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 2,
        "image_dim": 32,
        "added_kv_proj_dim": 24,
    },
    "LTX2VideoTransformer3DModel": {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "num_layers": 2,
        "caption_channels": 16,
        "rope_type": "split",
    },
    "HunyuanVideo15Transformer3DModel": {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "text_embed_dim": 16,
        "text_embed_2_dim": 16,
        "image_embed_dim": 16,
        "rope_axes_dim": (4, 6, 6),
    },
    "CogVideoXTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "in_channels": 8,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": 16,
        "num_layers": 2,
        "max_text_seq_length": 8,
        "use_rotary_positional_embeddings": True,
    },
    "UNetSpatioTemporalConditionModel": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "num_attention_heads": 2,
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96,
    },
}


# Wan 2.2 TI2V gives every token a time of its own, for the picture is the first of its latents.
PICTURED = {**TINY["WanTransformer3DModel"], "out_channels": 36, "image_dim": None, "added_kv_proj_dim": None}
KINDS = {name: (name, config) for name, config in TINY.items()}
KINDS["WanTransformer3DModel, a time a token"] = ("WanTransformer3DModel", PICTURED)


@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_step_counts_what_a_real_one_does(kind: str) -> None:
    name, config = KINDS[kind]
    shape = LatentShape(1, config.get("in_channels", 8), 3, 8, 8)
    module = getattr(diffusers, name)(**config).eval()
    arguments = CALLS[name].inputs(module.config, shape, torch.float32)
    counted = trace_peak(lambda: module(**arguments, return_dict=False)).peak_bytes
    traced = step_bytes(Component("diffusers", name, config), shape, "float32")
    assert traced == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("name", ["LTXVideoTransformer3DModel", "WanTransformer3DModel"])
def test_one_curve_gives_every_shape(name: str) -> None:
    component = Component("diffusers", name, TINY[name])
    curve = trace_curve(component, TINY[name]["in_channels"], "bfloat16")
    assert curve is not None
    for frames, height, width in ((7, 16, 24), (16, 24, 40), (21, 60, 104)):
        shape = LatentShape(1, TINY[name]["in_channels"], frames, height, width)
        assert curve.live_bytes(shape, guided=False) == pytest.approx(
            step_bytes(component, shape, "bfloat16"), rel=0.02
        )


def test_guidance_doubles_only_what_goes_through_in_one_batch() -> None:
    shape = LatentShape(1, 8, 2, 3, 5)
    both, apart = (DenoiseCurve(100, 10, 1, guidance_in_batch) for guidance_in_batch in (True, False))
    assert both.live_bytes(shape, guided=False) == apart.live_bytes(shape, guided=True) == 100 + 300 + 900
    assert both.live_bytes(shape, guided=True) == 2 * 1300


def test_a_denoiser_that_is_not_known_has_no_curve() -> None:
    assert trace_curve(Component("diffusers", "SomeTransformer", {}), 8, "float32") is None


PARTS = (
    ComponentSize("text_encoder", 9 * GIB, (Stage.PROMPT,), GIB),
    ComponentSize("transformer", 4 * GIB, (Stage.DENOISE,), GIB // 4),
    ComponentSize("vae", GIB, (Stage.DENOISE, Stage.DECODE), None),
)


@pytest.mark.parametrize(
    ("capacity", "activation", "expected"),
    [
        (24 * GIB, 2 * GIB, None),
        (6 * GIB, 5 * GIB, None),  # layer by layer
        (6 * GIB, 8 * GIB, (Stage.DENOISE, 9 * GIB)),  # the VAE encodes the picture there
        (GIB, 0, (Stage.PROMPT, 2 * GIB)),
    ],
)
def test_the_stage_that_fits_no_device_is_named_with_its_bytes(
    capacity: int, activation: int, expected: tuple[Stage, int] | None
) -> None:
    requirements = ModelRequirements(PARTS, (DenoiseCurve(activation, 0, 0, guidance_in_batch=False), None))
    assert requirements.short_of(LatentShape(1, 8, 2, 3, 5), capacity, guided=True) == expected


def test_what_is_stored_is_what_was_traced(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    entry = load_models(settings)["tiny"].model_copy(update={"revision": "one"})
    assert profiles.load_requirements(settings, entry) is None
    requirements = ModelRequirements(PARTS, (DenoiseCurve(1.5, 2.5, 0.0, guidance_in_batch=True), None))
    profiles.save_requirements(settings, entry, requirements)
    assert profiles.load_requirements(settings, entry) == requirements


def test_a_data_folder_that_is_away_is_not_made_anew_by_what_is_saved_in_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    entry = load_models(settings)["tiny"]
    path = profiles.profile_path(settings, entry)
    with pytest.raises(FileNotFoundError):
        profiles.make_folder_of(path)
    with pytest.raises(FileNotFoundError):
        record_fault(entry, settings, Fault("broken"))
    assert not settings.data_dir.exists()
    settings.data_dir.mkdir()
    profiles.make_folder_of(path)
    assert path.parent.is_dir()


class Unlisted(torch.nn.Module):
    """A denoiser that `CALLS` does not list, called as diffusers' transformers are."""

    def __init__(self, in_channels: int, text_dim: int) -> None:
        super().__init__()
        self.config = {"in_channels": in_channels, "text_dim": text_dim}
        self.wide = torch.nn.Linear(in_channels, 64)
        self.text = torch.nn.Linear(text_dim, 64)
        self.out = torch.nn.Linear(64, in_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        assert not return_dict
        wide = self.wide(hidden_states.flatten(2).transpose(1, 2))
        return (self.out(wide + self.text(encoder_hidden_states).mean(1, keepdim=True)) * timestep[0],)


def test_a_denoiser_that_is_not_listed_is_traced_by_its_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"in_channels": 4, "text_dim": 8}
    component = Component("diffusers", "Unlisted", config)
    monkeypatch.setattr(diffusers, "Unlisted", Unlisted, raising=False)
    monkeypatch.setattr("app.models.denoiser_memory.build_component", lambda one: Unlisted(**one.config))
    curve = trace_curve(component, 4, "float32")
    assert curve is not None
    assert curve.guidance_in_batch
    # Two tensors of 64 channels, or one and the input, at a time.
    assert 64 * 4 <= curve.bytes_a_position < 3 * 64 * 4


def test_one_that_cannot_be_traced_is_guessed_from_its_widest_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    component = Component("diffusers", "Unlisted", {"in_channels": 4, "patch_size": (1, 2, 2)})

    def built(_component: Component) -> Unlisted:
        module = Unlisted(4, 8)
        module.config = {"in_channels": 4}  # nothing says how wide the text is
        return module

    monkeypatch.setattr(diffusers, "Unlisted", Unlisted, raising=False)
    monkeypatch.setattr("app.models.denoiser_memory.build_component", built)
    curve = trace_curve(component, 4, "float32")
    assert curve is not None
    assert curve.bytes_a_position == 8 * 64 * 4 / 4


def test_what_a_denoise_took_teaches_the_margin_and_the_seconds_of_the_next() -> None:
    costs, key = DenoiseCosts("cuda"), "mine/bfloat16"
    assert costs.upper_bytes(key, GIB) == round(1.3 * GIB)
    assert costs.step_seconds(f"{key}/resident", 1000) is None
    for _ in range(5):
        costs.observe(key, GIB, MeasuredPeak(round(1.8 * GIB), 0, 0))
        costs.observe_step(f"{key}/resident", 1000, 0.5)
    assert 1.8 * GIB < costs.upper_bytes(key, GIB) < 2.1 * GIB
    assert costs.upper_bytes("another", GIB) == round(1.3 * GIB)
    assert costs.step_seconds(f"{key}/resident", 2000) == 1.0
    costs.out_of_memory(key, GIB, 3 * GIB)
    assert costs.upper_bytes(key, GIB) > 3 * GIB
    for copy in (
        DenoiseCosts.from_json("cuda", costs.to_json()),
        DenoiseCosts.from_summary("cuda", costs.summary()),
    ):
        assert copy.upper_bytes(key, GIB) == costs.upper_bytes(key, GIB)
        assert copy.step_seconds(f"{key}/resident", 2000) == 1.0
