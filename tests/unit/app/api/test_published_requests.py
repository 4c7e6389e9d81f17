"""Requests for the published models: planned with nothing downloaded, refused by name where it must be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from starlette.testclient import TestClient

from adaptive.types import VideoShape
from app.config import ConfigError, Settings
from app.models import profiles
from app.models.entries import ModelEntry, load_models

GIB = 2**30
CARD = {"name": "cuda:0", "kind": "cuda", "total_bytes": 80 * GIB, "free_bytes": 60 * GIB}
PUBLISHED = {name: entry for name, entry in load_models(Settings()).items() if not entry.is_builtin}
Plan = Callable[..., tuple[int, dict[str, object]]]


@pytest.fixture
def plan(client_of: Callable[..., TestClient], settings: Settings) -> Plan:
    """POST /plan where one card lives and the shipped profiles are all there is."""
    shipped = {
        "load_profile": partial(profiles.load, settings),
        "load_requirements": partial(profiles.load_requirements, settings),
    }
    client = client_of(settings, **shipped)
    client.app.state.service.store.register_worker("w", CARD)  # type: ignore[attr-defined]

    def ask(**fields: object) -> tuple[int, dict[str, object]]:
        answer = client.post("/plan", json={"prompt": "a boat sails by"} | fields)
        return answer.status_code, answer.json()

    return ask


@pytest.mark.parametrize("entry", PUBLISHED.values(), ids=PUBLISHED)
def test_its_usual_request_is_planned_exactly(entry: ModelEntry, plan: Plan) -> None:
    status, body = plan(model=entry.name)
    assert status == 200, body
    chosen = body["plan"]
    assert isinstance(chosen, dict)
    assert chosen["fits_now"]
    assert chosen["exact"]
    given = entry.defaults
    profile = profiles.load(Settings(), entry)
    assert profile is not None
    video = VideoShape(given.num_frames, given.height, given.width)
    assert chosen["latent_frames"] == profile.traits.latent_shape(video).frames


@pytest.mark.parametrize("entry", PUBLISHED.values(), ids=PUBLISHED)
def test_a_size_that_it_cannot_make_is_refused_by_name(entry: ModelEntry, plan: Plan) -> None:
    status, body = plan(model=entry.name, width=entry.defaults.width + 8)
    code = "shape_not_taken" if entry.shapes else "size_not_a_multiple"
    assert (status, body["code"], body["field"]) == (422, code, "width")
    assert entry.name in str(body["detail"])


# A legal size and length by CogVideoX' rules, which its learned positions do not cover.
@pytest.mark.parametrize("changed", [{"width": 480, "height": 480}, {"num_frames": 41}])
def test_a_model_of_one_shape_takes_no_other_and_says_which(plan: Plan, changed: dict[str, int]) -> None:
    status, body = plan(model="cogvideox-5b-i2v", **changed)
    assert (status, body["code"]) == (422, "shape_not_taken")
    assert body["shapes"] == ["720x480x49"]


def test_a_model_of_one_shape_offers_no_larger_one(plan: Plan) -> None:
    _, body = plan(model="cogvideox-5b-i2v")
    assert body["largest"] == {"frames": 49, "height": 480, "width": 720}


def test_defaults_that_are_none_of_the_shapes_stop_the_start(settings: Settings) -> None:
    path = settings.data_dir / "models.toml"
    path.write_text('[models.tiny]\nshapes = ["128x128x9"]\n')
    with pytest.raises(ConfigError, match=r"models\.tiny\.defaults: must be one of 128x128x9"):
        load_models(Settings(data_dir=settings.data_dir, models_file=path))
