"""The models that are offered out of the box: described, profiled, and plannable with nothing downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptive.families import traits_of
from adaptive.profile import config_digest
from app import profiles
from app.components import components_of
from app.config import ModelEntry, Settings, load_models
from app.profiler import trace_missing

PUBLISHED = {name: entry for name, entry in load_models(Settings()).items() if not entry.is_builtin}


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
    demand = profiles.load_demand(offline, entry)
    assert demand is not None
    assert trace_missing(offline, {entry.name: entry})
    assert not list(offline.data_dir.rglob("*.json"))
