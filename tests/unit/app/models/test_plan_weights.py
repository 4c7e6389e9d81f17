"""Sizes, placements and decode plans from configurations alone, and how a placement is carried out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive.memory.traced_vae import config_digest
from adaptive.pipelines.recorded_call import load_calls, save_calls
from adaptive.types import VideoShape
from app.config import Settings
from app.models import profiles
from app.models.components import components_of
from app.models.entries import ModelEntry, load_models
from app.models.forecast import Unfeasible, forecast
from app.models.place_weights import place
from app.models.weight_sizes import component_sizes, weight_bytes

GIB = 2**30


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings on an empty data folder."""
    return Settings(data_dir=tmp_path)


@pytest.fixture
def ltx(settings: Settings) -> ModelEntry:
    """The published model, of which nothing is downloaded."""
    return load_models(settings)["ltx-video"]


def test_the_published_model_has_its_published_sizes(settings: Settings, ltx: ModelEntry) -> None:
    sizes = {name: weight_bytes(part, 2) for name, part in components_of(ltx, settings).items()}
    # Parameters of the published checkpoint, in billions: T5-v1.1-XXL's encoder, the 2B transformer, the VAE.
    assert sizes["text_encoder"] / 2e9 == pytest.approx(4.76, abs=0.01)
    assert sizes["transformer"] / 2e9 == pytest.approx(1.92, abs=0.01)
    assert sizes["vae"] / 2e9 == pytest.approx(0.419, abs=0.001)


# What a card holds, the host's memory, the placement, and the rung of 97 frames of 768x512.
CARDS = [
    (8, 32, "group_offload"),
    (12, 32, "drop_text_encoder"),
    (16, 32, "drop_text_encoder"),
    (24, 32, "resident"),
]


@pytest.mark.parametrize(("card_gib", "host_gib", "kind"), CARDS)
def test_the_published_model_runs_on_usual_cards(
    settings: Settings, ltx: ModelEntry, card_gib: int, host_gib: int, kind: str
) -> None:
    device_bytes = card_gib * GIB - 600 * 2**20
    found = forecast(
        settings, ltx, VideoShape(97, 512, 768), device_bytes=device_bytes, host_bytes=host_gib * GIB
    )
    assert found["placement"]["kind"] == kind
    assert found["placement"]["device_bytes"] <= device_bytes - settings.reserve_bytes
    assert found["placement"]["host_bytes"] <= host_gib * GIB
    chosen = found["decode"]
    assert chosen["predicted_peak_bytes"] <= chosen["budget_bytes"]
    faster = [rung for rung in found["rungs"] if rung["frames_per_chunk"] > chosen["frames_per_chunk"]]
    assert not any(rung["fits"] for rung in faster)


@pytest.mark.parametrize("exact_only", [True, False])
def test_approximate_rungs_are_listed_and_labelled_only_if_allowed(
    settings: Settings, ltx: ModelEntry, exact_only: bool
) -> None:
    card = {"device_bytes": 24 * GIB, "host_bytes": 64 * GIB, "exact_only": exact_only}
    found = forecast(settings, ltx, VideoShape(97, 512, 768), **card)
    assert found["decode"]["exact"]
    assert {rung["exact"] for rung in found["rungs"]} == ({True} if exact_only else {True, False})
    for rung in found["rungs"]:
        assert rung["exact"] == (not rung["strategy"].startswith("approximate"))


def test_what_fits_nowhere_is_said_with_its_number(settings: Settings, ltx: ModelEntry) -> None:
    with pytest.raises(Unfeasible, match="needs"):
        forecast(settings, ltx, VideoShape(97, 512, 768), device_bytes=1 * GIB, host_bytes=64 * GIB)
    with pytest.raises(Unfeasible, match="host memory"):
        forecast(settings, ltx, VideoShape(97, 512, 768), device_bytes=8 * GIB, host_bytes=4 * GIB)


def test_shipped_profiles_are_those_of_the_models_configurations(settings: Settings) -> None:
    for entry in load_models(settings).values():
        if not profiles.shipped_path(entry).exists():
            continue
        profile = profiles.load(settings, entry)
        assert profile is not None, f"{entry.name}: made with other versions; run `framefit profile --ship`"
        component = components_of(entry, settings)["vae"]
        built = torch_config(component.class_name, component.config)
        assert profile.config_digest in (config_digest(component.config), config_digest(built))
        assert profile.dtype == entry.dtype


def torch_config(class_name: str, config: Any) -> Any:
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, class_name).from_config(dict(config)).config


PLACEMENTS = [("drop_text_encoder", ()), ("model_offload", ()), ("group_offload", ("text_encoder",))]


@pytest.mark.parametrize(("kind", "grouped"), PLACEMENTS)
def test_every_placement_gives_the_same_latents_and_works_again(
    pipe: Any,
    request_arguments: dict[str, Any],
    kind: str,
    grouped: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from adaptive.pipelines.enable import capture

    with capture(pipe) as calls:
        pipe(**request_arguments)
    save_calls(calls, tmp_path / "expected")
    # A CPU is placed as resident; what is meant for a GPU runs here all the same, host and device being one.
    monkeypatch.setattr("app.models.place_weights._is_host", lambda _device: False)
    vacate = place(pipe, kind, torch.device("cpu"), grouped)
    for _ in range(2):
        request_arguments["generator"].manual_seed(7)
        with capture(pipe) as again:
            pipe(**request_arguments)
        vacate()
        (expected,) = load_calls(tmp_path / "expected")
        assert torch.equal(again[0].latents, expected.latents)


def test_component_sizes_know_when_each_part_is_needed(settings: Settings, ltx: ModelEntry) -> None:
    sizes = {size.name: size for size in component_sizes(components_of(ltx, settings), "bfloat16")}
    assert [stage.value for stage in sizes["text_encoder"].stages] == ["prompt"]
    assert [stage.value for stage in sizes["transformer"].stages] == ["denoise"]
    assert [stage.value for stage in sizes["vae"].stages] == ["denoise", "decode"]
    # Group offload brings leaf layers; the largest is T5's embedding of 32128 x 4096.
    assert sizes["text_encoder"].group_bytes == 32128 * 4096 * 2
