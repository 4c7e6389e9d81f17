"""A job whose model is still at the hub, which is one on this machine: it comes, is told, and stops."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
from fake_hub import FakeHub, Repository, running_hub, use_here
from hub_model import MIB, SOURCE, put_here
from scraped import total
from served_model import ServedModel, served_model
from waiting import wait_for

from app.models.downloads.download import download
from app.models.downloads.progress import DownloadProgress
from app.scheduling import awaited_models
from app.store import open_store
from app.worker.job.control import JobCanceled, JobControl, WorkerStopping
from app.worker.job.fetch import _Reports
from app.worker.loop import Worker

LONG_SECONDS = 60.0


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A whole tiny pipeline, and beside it what no pipeline loads."""
    folder = tiny_pipelines.save("LTXImageToVideoPipeline", tmp_path_factory.mktemp("model"))
    (folder / "original.safetensors").write_bytes(b"0" * MIB)
    (folder / "text_encoder" / "large.bin").write_bytes(b"0" * MIB)
    (folder / "tokenizer" / "large.txt").write_bytes(b"0" * 4 * MIB)
    return Repository.of(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Repository) -> Iterator[FakeHub]:
    with running_hub() as hub:
        hub.repositories[SOURCE] = Repository(dict(repository.files), repository.commit)
        use_here(hub, tmp_path / "hf" / "hub", monkeypatch)
        for name, value in hub.environ(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def served(hub: FakeHub, tmp_path: Path) -> Iterator[ServedModel]:
    assert hub.url
    with served_model(tmp_path / "data", Path(SOURCE)) as served:
        yield served


class Running:
    """A worker that runs the next job in a thread."""

    def __init__(self, served: ServedModel) -> None:
        self.store = open_store(served.settings)
        claim = self.store.claim("here", models=["mine"], loaded_model=None, lease_seconds=600)
        assert claim is not None
        self.worker = Worker(served.settings, served.models, self.store, served.engine, "here")
        self.thread = threading.Thread(target=self.worker._run_job, args=(claim,))
        self.thread.start()

    @property
    def control(self) -> JobControl:
        current = wait_for(lambda: self.worker._current, LONG_SECONDS)
        assert current is not None
        return current[1]

    def end(self) -> None:
        self.thread.join()
        self.store.close()


def test_it_comes_before_loading_which_asks_the_hub_nothing(hub: FakeHub, served: ServedModel) -> None:
    queued = served.submit()
    served.run_next()
    job = served.job(queued)
    assert job["status"] == "succeeded", job["error"]
    loaded = sum(len(data) for name, data in hub.repositories[SOURCE].files.items() if "/" in name)
    download = job["download"]
    assert loaded - MIB <= download["total_bytes"] <= loaded - MIB + 10_000  # model_index.json
    assert download["done_bytes"] == download["total_bytes"]
    stages = [event["stage"] for event in served.events("stage")]
    assert stages[:2] == ["downloading", "loading"]
    told = [event for event in served.events("progress") if event["stage"] == "downloading"]
    assert all(event["progress"] <= 0.01 for event in told)
    assert told[-1]["download"]["done_bytes"] == download["total_bytes"]
    received = sum(event["received_bytes"] for event in served.events("downloaded"))
    assert 0 < received <= download["total_bytes"]
    assert total(served.counted(), "framefit_download_bytes_total", model="mine", host="here") == received
    assert not any("original" in request or "large.bin" in request for request in hub.requests)
    asked = len(hub.requests)
    second = served.submit(seed=6)
    served.engine._model = None
    served.run_next()
    assert served.job(second)["status"] == "succeeded"
    assert served.job(second)["download"] is None
    assert len(hub.requests) == asked
    storage = next(one for one in models(served) if one["name"] == "mine")["storage"]
    assert (storage["place"], storage["size_from"], storage["download_bytes"]) == ("hub_cache", "disk", 0)


def test_a_canceled_job_stops_its_download_and_the_next_goes_on_there(
    hub: FakeHub, served: ServedModel
) -> None:
    hub.bytes_per_second = MIB
    canceled = served.submit()
    running = Running(served)
    wait_for(lambda: hub.sent_bytes > MIB // 2, LONG_SECONDS)
    hub.halted.set()  # not even a byte will come any more
    assert running.control.interrupt(JobCanceled)
    running.end()
    job = served.job(canceled)
    assert job["status"] == "canceled"
    assert 0 < job["download"]["done_bytes"] < job["download"]["total_bytes"]
    hub.halted.clear()
    hub.bytes_per_second, before = None, hub.sent_bytes
    snapshot = download(served.models["mine"], served.settings, lambda _: None, lambda: False)
    assert hub.sent_bytes - before < snapshot.total_bytes  # it went on where the job had stopped


def test_a_worker_that_stops_gives_the_job_back_at_once(hub: FakeHub, served: ServedModel) -> None:
    hub.halted.set()
    queued = served.submit()
    running = Running(served)
    wait_for(lambda: hub.file_requests(), LONG_SECONDS)
    running.control.hand_back()
    running.end()
    assert served.job(queued)["status"] == "queued"
    hub.halted.clear()


def test_after_a_refusal_of_the_hub_the_next_request_is_refused_with_what_to_do(
    hub: FakeHub, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[SOURCE].gated = True
    queued = served.submit()
    served.run_next()
    told = f"accept its licence at {hub.url}/{SOURCE} and set HF_TOKEN"
    error = served.job(queued)["error"]
    assert error["code"] == "model_unavailable"
    served.http.app.state.service.faults._checked_at.clear()  # looked at again after two seconds
    assert told in error["message"]
    with pytest.raises(AssertionError, match=r"model_unavailable.*accept its licence"):
        served.submit()
    assert any(one["unavailable_because"] and told in one["unavailable_because"] for one in models(served))
    monkeypatch.setenv("HF_TOKEN", "a-good-token")
    served.http.app.state.service.faults._checked_at.clear()  # looked at again after two seconds
    assert served.submit()  # with another token, nobody knows


def models(served: ServedModel) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = served.http.get("/models").json()["models"]
    return found


def test_a_disk_without_room_fails_the_job_with_both_numbers(hub: FakeHub, served: ServedModel) -> None:
    large = "transformer/diffusion_pytorch_model.safetensors"
    hub.repositories[SOURCE].sizes[large] = 2**60
    queued = served.submit()
    served.run_next()
    error = served.job(queued)["error"]
    assert error["code"] == "disk_full"
    assert error["data"]["needed_bytes"] > error["data"]["free_bytes"] > 0


def test_bytes_that_come_are_an_advance_and_waiting_for_them_is_none() -> None:
    control = JobControl()
    reports = _Reports(control, lambda _share, data: control.check(), lambda _data: None)  # noqa: ARG005
    control.advanced_at = 0.0
    reports.seen(DownloadProgress(0, 10))
    assert control.advanced_at == 0.0
    reports.seen(DownloadProgress(5, 10, 5))
    assert control.advanced_at > 0.0
    control.hand_back()
    assert control.stops
    assert control.interrupt(WorkerStopping)


def test_the_store_keeps_the_newest_download_of_a_job(served: ServedModel) -> None:
    queued = served.submit()
    with closing(open_store(served.settings)) as store:
        claim = store.claim("here", models=["mine"], loaded_model=None, lease_seconds=600)
        assert claim is not None
        told = {"done_bytes": 1, "total_bytes": 2, "bytes_per_second": None, "seconds_left": None}
        stage = claim.job.stage.__class__.DOWNLOADING
        assert store.progress(queued, claim.token, stage=stage, progress=0, data={"download": told})
        assert store.progress(queued, claim.token, stage=claim.job.stage, progress=0.1)
    assert served.job(queued)["download"] == told


def test_the_card_of_a_model_tells_its_size_and_where_it_is_and_asks_nothing(
    hub: FakeHub, served: ServedModel
) -> None:
    with closing(open_store(served.settings)) as store:
        store.register_worker("w", {"name": "cpu", "kind": "cpu", "total_bytes": 8 * 2**30})
    found = {one["name"]: one for one in models(served)}
    storage = found["mine"]["storage"]
    assert (storage["place"], storage["on_disk"], storage["download_bytes"]) == ("hub", False, None)
    published = found["ltx-video"]["storage"]
    assert published["size_from"] == "configuration"
    assert published["download_bytes"] > 10 * 2**30
    assert hub.requests == []


def test_no_time_is_told_until_the_model_is_on_this_machine(
    hub: FakeHub, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awaited_models, "LOOK_SECONDS", 0.0)
    service = served.http.app.state.service
    cpu = {"name": "cpu", "kind": "cpu", "total_bytes": 8 * 2**30}
    service.store.register_worker("w", cpu)
    service.waiting_times.run_times.restore({"mine": [[12.0, 2.0, 9.0, 0.1, "64x64x9", 1, 1]]})
    queued = served.submit()
    fields = {"model": "mine", "image_size": "64x64"}

    def told() -> list[Any]:
        found = [served.job(queued), served.http.post("/plan", json=fields).json()]
        return [one[name] for one in found for name in ("eta_seconds", "eta_range")]

    assert told() == [None] * 4
    service.store.register_worker("w", {**cpu, "loaded_model": "mine"})
    assert None not in told(), "the worker may have another disk"
    service.store.register_worker("w", cpu)
    assert told() == [None] * 4
    put_here(served.models["mine"])
    assert None not in told()
    assert hub.requests == []


def test_a_look_whether_a_model_is_here_is_kept_for_a_while(hub: FakeHub, served: ServedModel) -> None:
    now = 0.0
    is_awaited = awaited_models.AwaitedModels(served.settings, served.models, list, clock=lambda: now)
    assert is_awaited("mine")
    put_here(served.models["mine"])
    assert is_awaited("mine")
    now = awaited_models.LOOK_SECONDS
    assert not is_awaited("mine")
    assert not is_awaited("a model of another configuration")
    assert hub.requests == []
