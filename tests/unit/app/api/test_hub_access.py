"""A job whose model the hub does not give is refused before it is queued; with a hub on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, running_hub, use_here
from hub_model import BYTES, SOURCE, TRANSFORMER, publish
from served_model import ServedModel, served_model

from app.models.downloads.download import ask_size

PHOTO = (Path(__file__).parents[4] / "app" / "assets" / "demo.jpg").read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        publish(hub)
        use_here(hub, tmp_path / "hf" / "hub", monkeypatch)
        for name, value in hub.environ(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def served(hub: FakeHub, tmp_path: Path) -> Iterator[ServedModel]:
    assert hub.url
    with served_model(tmp_path / "data", Path(SOURCE), ask_hub=ask_size) as served:
        yield served


def refused(served: ServedModel) -> tuple[int, dict[str, object]]:
    """Status and body of a submission."""
    answer = served.http.post(
        "/generate", data={"model": "mine", "prompt": "x"}, files={"image": ("photo.jpg", PHOTO)}
    )
    return answer.status_code, answer.json()


def test_a_gated_model_is_refused_until_its_licence_is_accepted(hub: FakeHub, served: ServedModel) -> None:
    hub.repositories[SOURCE].gated = True
    status, body = refused(served)
    assert (status, body["code"]) == (422, "model_unavailable")
    assert f"accept its licence at {hub.url}/{SOURCE} and set HF_TOKEN" in str(body["detail"])
    assert served.http.get("/jobs").json()["jobs"] == []
    asked = len(hub.requests)
    assert refused(served)[0] == 422
    assert len(hub.requests) == asked  # a moment later it is still known
    hub.repositories[SOURCE].gated = False
    served.http.app.state.service.hub._asked_at.clear()
    assert refused(served)[0] == 202
    asked = len(hub.requests)
    assert refused(served)[0] == 202
    assert len(hub.requests) == asked


def test_a_disk_that_is_too_small_is_told_with_both_numbers(hub: FakeHub, served: ServedModel) -> None:
    hub.repositories[SOURCE].sizes[TRANSFORMER] = 2**60
    status, body = refused(served)
    assert (status, body["code"]) == (507, "disk_full")
    assert int(str(body["needed_bytes"])) > 2**60 > int(str(body["free_bytes"]))


def test_a_hub_that_cannot_be_reached_keeps_no_job_out(hub: FakeHub, served: ServedModel) -> None:
    hub.status, hub.failures = 503, -1
    assert refused(served)[0] == 202
    hub.status = None
    assert refused(served)[0] == 202  # it is asked again after a minute only
    one = next(each for each in served.http.get("/models").json()["models"] if each["name"] == "mine")
    assert one["storage"]["size_bytes"] != BYTES
