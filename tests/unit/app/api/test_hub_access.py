"""A job whose model the hub does not give is refused before it is queued; with a hub on this machine."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import ANY

import pytest
from fake_hub import FakeHub, running_hub, use_here
from hub_model import BYTES, FILES, MIB, SOURCE, TRANSFORMER, entry_of, publish
from served_model import ServedModel, served_model

from app.config import Settings
from app.models.downloads import access, planning
from app.models.downloads.access import HubAccess
from app.models.downloads.download import DownloadCanceled, ask_size, needs_download
from app.models.entries import ModelEntry

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
def served(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedModel]:
    assert hub.url
    monkeypatch.setattr(access, "ANSWER_SECONDS", 60.0)  # this machine may be slow
    monkeypatch.setattr(access, "REFUSED_AGAIN_SECONDS", 600.0)
    with served_model(tmp_path / "data", Path(SOURCE), ask_hub=ask_size, min_free_disk_bytes=0) as served:
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
    asked = len(hub.requests)
    assert refused(served) == (status, {**body, "free_bytes": ANY, "detail": ANY})
    assert len(hub.requests) == asked  # the size is known: the disk is looked at, not the hub
    assert served.http.get("/jobs").json()["jobs"] == []


def test_a_path_that_does_not_exist_is_no_question_for_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "model"
    with served_model(tmp_path / "data", gone, ask_hub=ask_size) as served:
        status, body = refused(served)
        assert (status, body["code"]) == (422, "model_unavailable")
        assert f"the source of model mine, {gone}, does not exist on this machine" in str(body["detail"])
        one = next(each for each in served.http.get("/models").json()["models"] if each["name"] == "mine")
        assert (one["storage"]["place"], one["storage"]["on_disk"]) == ("missing", False)
        assert one["storage"]["download_bytes"] is None
        assert not needs_download(served.models["mine"], served.settings)
    assert hub.requests == []


def test_a_disk_that_filled_up_after_the_hub_was_asked_refuses_the_next_job(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(served)[0] == 202
    usage, free = shutil.disk_usage("/"), BYTES + MIB
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda _: usage._replace(free=free))
    status, body = refused(served)
    assert (status, body["code"]) == (507, "disk_full")
    assert body["needed_bytes"] == BYTES - len(FILES["model_index.json"])
    free = 1024 * MIB
    assert refused(served)[0] == 202


def test_the_time_for_an_answer_begins_when_the_process_that_asks_has_started(
    hub: FakeHub, tmp_path: Path
) -> None:
    assert hub.url
    settings = Settings(data_dir=tmp_path)
    now, late = 0.0, []

    def ask(_: ModelEntry, __: Settings, is_late: Callable[[], bool], on_started: Callable[[], None]) -> None:
        nonlocal now
        for seconds, begin in ((50, on_started), (4, None), (2, None)):
            now += seconds
            late.append(is_late())
            if begin:
                begin()
        if late[-1]:
            raise DownloadCanceled

    assert HubAccess(settings, ask, lambda: now).check(entry_of(settings))
    assert late == [False, False, True]


def test_a_hub_that_cannot_be_reached_keeps_no_job_out(hub: FakeHub, served: ServedModel) -> None:
    hub.status, hub.failures = 503, -1
    assert refused(served)[0] == 202
    hub.status = None
    assert refused(served)[0] == 202  # it is asked again after a minute only
    one = next(each for each in served.http.get("/models").json()["models"] if each["name"] == "mine")
    assert one["storage"]["size_bytes"] != BYTES
