"""The models that are offered out of the box: described, profiled, and plannable with nothing downloaded."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import tiny_pipelines
import torch

from adaptive.families import traits_of
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile_trace import lazy_profile
from adaptive.memory.traced_vae import TracedVae, config_digest
from adaptive.types import LatentShape
from app.config import Settings
from app.models import profiles
from app.models.components import build_component, components_of
from app.models.entries import ModelEntry, load_models
from app.models.profile_tracer import trace_missing
from app.models.weight_sizes import weight_bytes
from app.worker.pipeline_call import check_call

PUBLISHED = {name: entry for name, entry in load_models(Settings()).items() if not entry.is_builtin}

# The others' parts are described by a package of their own, and tested there.
OF_DIFFUSERS = {name: entry for name, entry in PUBLISHED.items() if entry.resolution is None}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Settings(data_dir=tmp_path)


@pytest.mark.parametrize("entry", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_model_is_what_its_entry_says(entry: ModelEntry, offline: Settings) -> None:
    vae = components_of(entry, offline)["vae"]
    traits = traits_of(vae.class_name, vae.config)
    told = (entry.vae_class, entry.temporal_ratio, entry.first_frame_alone)
    assert told == (traits.vae_class, traits.temporal_ratio, traits.first_frame_alone)
    assert entry.size_multiple % traits.spatial_ratio == 0
    given, limits = entry.defaults, entry.limits
    assert given.width * given.height <= limits.max_pixels
    assert given.num_frames <= limits.max_frames


@pytest.mark.parametrize("entry", PUBLISHED.values(), ids=PUBLISHED)
def test_its_profile_ships_so_that_no_start_traces_it(entry: ModelEntry, offline: Settings) -> None:
    profile = profiles.load(offline, entry)
    assert profile is not None
    assert profile.config_digest == config_digest(components_of(entry, offline)["vae"].config)
    requirements = profiles.load_requirements(offline, entry)
    assert requirements is not None
    assert trace_missing(offline, {entry.name: entry})
    assert not list(offline.data_dir.rglob("*.json"))


@pytest.mark.parametrize("entry", OF_DIFFUSERS.values(), ids=OF_DIFFUSERS)
def test_its_parts_are_those_that_its_pipeline_takes(entry: ModelEntry, offline: Settings) -> None:
    pipe = tiny_pipelines.build(entry.pipeline)
    check_call(pipe, entry)
    for name, part in components_of(entry, offline).items():
        counterpart = pipe.components[name.removesuffix("_2") if name == "transformer_2" else name]
        assert type(counterpart).__name__ == part.class_name
    asked = inspect.signature(type(pipe).__call__).parameters
    assert set(entry.call) <= set(asked)


# Billions of parameters, as published; a text encoder's are those of its encoder alone.
PARAMETERS = {
    "cogvideox-5b-i2v": ("transformer", 5.6),
    "hunyuanvideo-i2v": ("transformer", 12.8),
    "hunyuanvideo15-i2v-480p": ("transformer", 8.3),
    "i2vgen-xl": ("unet", 1.4),
    "ltx-2": ("transformer", 18.9),
    "wan21-flf2v-720p": ("transformer", 16.4),
    "wan22-i2v-a14b": ("transformer_2", 14.3),
    "wan22-ti2v-5b": ("transformer", 5.0),
}


@pytest.mark.parametrize(("name", "part", "billions"), [(name, *told) for name, told in PARAMETERS.items()])
def test_its_denoiser_has_the_published_size(
    name: str, part: str, billions: float, offline: Settings
) -> None:
    component = components_of(PUBLISHED[name], offline)[part]
    assert weight_bytes(component, 2) / 2e9 == pytest.approx(billions, abs=0.06)


# One of each engine that streams, small enough to be traced in seconds.
RETRACED = {name: load_models(Settings())[name] for name in ("photo-pan", "wan21-i2v-480p")}


@pytest.mark.parametrize("entry", RETRACED.values(), ids=RETRACED)
def test_a_shipped_profile_is_what_decoding_needs_today(entry: ModelEntry, offline: Settings) -> None:
    shipped = profiles.load(offline, entry)
    assert shipped is not None
    with torch.device("meta"):
        vae = build_component(components_of(entry, offline)["vae"])
    traced = lazy_profile(TracedVae(type(vae), vae.config, entry.dtype))
    shape = LatentShape(1, shipped.traits.latent_channels, 3, 32, 48)
    now, then = (each.estimate(shape, 2, LearnedMargins("cuda")).live_bytes for each in (traced, shipped))
    assert then == pytest.approx(now, rel=0.001), "decoding changed: run `framefit profile --ship`"
