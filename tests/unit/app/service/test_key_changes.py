"""Keys while the service runs: read again, limited when they are wrong, and those of administrators."""

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import served
from starlette.testclient import TestClient
from waiting import wait_for

from app.api import create_app
from app.api.routes import events
from app.config import ConfigError, Settings
from app.service.failed_keys import ACCEPTED_SECONDS, BURST, SECONDS_PER_KEY, FailedKeys
from app.service.keys import LiveKeys, digest_of, format_hash, new_key
from app.store import JobStore

ADA, BOB, EVE = new_key(), new_key(), new_key()


def entry(name: str, key: str, *more: str) -> str:
    return "\n".join([f"[keys.{name}]", f'hash = "{format_hash(key)}"', *more, ""])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(entry("ada", ADA) + entry("root", BOB, "admin = true"))
    return path


@pytest.fixture
def settings(tmp_path: Path, file: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", keys_file=file, poll_seconds=0.02)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def hand_in(client: Any, key: str, picture: bytes, **fields: Any) -> Any:
    files = {"image": ("a.jpg", picture)}
    return client.post("/generate", data={"prompt": "x", **fields}, files=files, headers=bearer(key))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_changed_file_is_in_force_without_a_restart(settings: Settings, file: Path) -> None:
    keys = LiveKeys(settings)
    file.write_text(entry("root", BOB) + entry("eve", EVE))
    assert keys.find(ADA) is not None, "no request reads it"
    keys.reload()
    assert [key and key.name for key in map(keys.find, (ADA, BOB, EVE))] == [None, "root", "eve"]
    assert keys.of_owner(digest_of(ADA).hex()[:32]) is None


@pytest.mark.parametrize("spoil", ["[[[", "", "[keys.a]\nhash = 'secret-secret-secret'", None])
def test_a_bad_file_keeps_the_keys_before_it_and_says_so_once(
    settings: Settings, file: Path, spoil: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    right = file.read_text()
    keys = LiveKeys(settings)
    if spoil is None:
        file.unlink()
    else:
        file.write_text(spoil)
    for _ in range(3):
        keys.reload()
        assert keys.find(ADA) is not None
        assert keys.find(EVE) is None
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith("keys_file_invalid keys_kept=2 ")
    assert "secret" not in errors[0]
    assert not keys.file_is_valid
    file.write_text(right + entry("eve", EVE))
    keys.reload()
    assert keys.find(EVE) is not None
    assert keys.file_is_valid


def test_a_bad_file_still_stops_the_start(settings: Settings, file: Path) -> None:
    file.write_text("[[[")
    with pytest.raises(ConfigError):
        LiveKeys(settings)


def test_a_running_service_takes_new_keys_and_drops_removed_ones(
    client: TestClient, file: Path, picture: bytes
) -> None:
    def valid() -> float:
        text = client.get("/metrics").text
        line = next(each for each in text.splitlines() if each.startswith("framefit_keys_file_valid "))
        return float(line.split()[1])

    def status(key: str) -> int:
        return client.get("/jobs", headers=bearer(key)).status_code

    assert hand_in(client, ADA, picture).status_code == 202
    wait_for(lambda: client.get("/metrics").status_code == 200, 60)
    assert (valid(), status(EVE)) == (1, 401)
    file.write_text(entry("eve", EVE))
    wait_for(lambda: status(EVE) == 200, 60)
    assert status(ADA) == 401
    file.write_text("[[[")
    wait_for(lambda: valid() == 0, 60)
    assert status(EVE) == 200


def test_a_file_that_is_slow_to_read_keeps_no_request_waiting_and_its_loop_is_listed(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(_path: Path | None) -> str:
        reading.set()
        go_on.wait(60)
        return "a share that hangs"

    monkeypatch.setattr("app.service.keys._content", slow)
    try:
        assert reading.wait(60)
        loops = client.get("/healthz").json()["loops"]
        assert "keys-file" in [loop["name"] for loop in loops]
        assert client.get("/jobs", headers=bearer(ADA)).status_code == 200
        assert not go_on.is_set()
    finally:
        go_on.set()


def test_the_stream_of_a_removed_key_ends(
    settings: Settings, file: Path, load_profile: Any, picture: bytes
) -> None:
    with (
        served(create_app(settings, load_profile=load_profile)) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client,
        client.stream("GET", "/events", headers=bearer(ADA)) as stream,
    ):
        hand_in(client, ADA, picture)
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("event:")) == "event: accepted"
        file.write_text(entry("root", BOB))
        wait_for(lambda: client.get("/jobs", headers=bearer(ADA)).status_code == 401, 60)
        assert hand_in(client, BOB, picture).status_code == 202
        assert not [line for line in lines if line.startswith("event:")]


@pytest.mark.parametrize(
    ("path", "key", "after"),
    [
        ("/events", ADA, entry("root", BOB, "admin = true")),
        ("/events", ADA, entry("ada", ADA, "admin = true")),
        ("/events", BOB, entry("root", BOB)),
        ("/jobs/{}/events", BOB, entry("root", BOB)),
    ],
    ids=["removed", "promoted", "demoted", "demoted-one-job"],
)
def test_a_stream_ends_when_its_keys_rights_change_though_nothing_happens(
    settings: Settings,
    file: Path,
    load_profile: Any,
    picture: bytes,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    key: str,
    after: str,
) -> None:
    monkeypatch.setattr(events, "CHECK_SECONDS", 0.2)
    with (
        served(create_app(settings, load_profile=load_profile)) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client,
    ):
        job_id = hand_in(client, ADA, picture).json()["id"]
        seen = {"Last-Event-ID": "0"}
        with client.stream("GET", path.format(job_id), headers=bearer(key) | seen) as stream:
            file.write_text(after)
            assert stream.status_code == 200
            pings = 0
            for line in stream.iter_lines():  # until it ends
                pings += line.startswith(":")
                assert pings < 3, "it goes on"


def test_a_stream_remembers_the_jobs_that_run_and_looks_up_no_new_one_of_who_sees_all(
    client: TestClient, app_store: JobStore, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    looked_up: list[str] = []
    visible = events.visible

    def noting(service: Any, job_id: str, owner: str | None) -> Any:
        looked_up.append(job_id)
        return visible(service, job_id, owner)

    monkeypatch.setattr(events, "visible", noting)
    ids = [hand_in(client, ADA, picture, model="tiny").json()["id"] for _ in range(3)]
    for job_id in ids[1:]:
        client.delete(f"/jobs/{job_id}", headers=bearer(ADA))
    ada = digest_of(ADA).hex()[:32]
    eve = digest_of(EVE).hex()[:32]
    for owner, scope, lookups in ((None, None, 0), (ada, ada, 3), (eve, eve, 3)):
        looked_up.clear()
        jobs = events.ServedJobs(service, events.Start(0, owner, scope))

        async def follow(jobs: events.ServedJobs = jobs) -> set[bool]:
            return {await jobs.sends(event) for event in app_store.events_after(0)}

        assert asyncio.run(follow()) == {owner != eve}
        assert (len(looked_up), len(jobs)) == (lookups, 1), "the job that waits"


def test_an_admin_key_sees_and_manages_the_jobs_of_all_keys(
    client: TestClient, app_store: JobStore, picture: bytes
) -> None:
    theirs = hand_in(client, ADA, picture, model="tiny").json()["id"]
    own = hand_in(client, BOB, picture, model="tiny").json()["id"]

    def listed(key: str) -> list[str]:
        return sorted(job["id"] for job in client.get("/jobs", headers=bearer(key)).json()["jobs"])

    assert (listed(ADA), listed(BOB)) == ([theirs], sorted([theirs, own]))
    videos = client.get("/v1/videos", headers=bearer(BOB)).json()["data"]
    assert {video["id"] for video in videos} == {theirs, own}
    job = client.get(f"/jobs/{theirs}", headers=bearer(BOB)).json()
    assert (job["key_name"], job["status"]) == ("ada", "queued")
    assert client.get(f"/jobs/{theirs}/image", headers=bearer(BOB)).content == picture
    assert client.delete(f"/jobs/{theirs}", headers=bearer(BOB)).json()["status"] == "canceled"
    retried = client.post(f"/jobs/{theirs}/retry", headers=bearer(BOB))
    assert (retried.status_code, retried.json()["key_name"]) == (202, "ada")
    assert app_store.get(theirs).owner == digest_of(ADA).hex()[:32], "it stays its key's job"
    assert client.get(f"/jobs/{own}", headers=bearer(ADA)).status_code == 404


def test_the_only_key_of_the_settings_sees_all_jobs_and_several_see_their_own(
    client_of: Callable[..., TestClient], tmp_path: Path, file: Path, picture: bytes
) -> None:
    for keys, seen in (((EVE,), 1), ((EVE, new_key()), 0)):
        settings = Settings(data_dir=tmp_path / f"with-{len(keys)}", keys_file=file, api_keys=keys)
        client = client_of(settings)
        assert hand_in(client, ADA, picture).status_code == 202
        assert len(client.get("/jobs", headers=bearer(EVE)).json()["jobs"]) == seen


def test_the_log_of_an_accepted_job_names_the_key(
    client: TestClient, picture: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hand_in(client, ADA, picture)
    (line,) = [record.getMessage() for record in caplog.records if "job_accepted" in record.getMessage()]
    assert line.endswith("key=ada")


def test_wrong_keys_are_logged_with_their_address_and_soon_refused_unseen(
    client_of: Callable[..., TestClient], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(settings)
    assert client.get("/jobs", headers=bearer(ADA)).status_code == 200
    for _ in range(BURST):
        assert client.get("/jobs", headers=bearer(new_key())).status_code == 401
    refused = client.get("/jobs", headers=bearer(new_key()))
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_wrong_keys")
    assert 1 <= int(refused.headers["Retry-After"]) <= SECONDS_PER_KEY
    assert client.post("/session", json={"key": new_key()}).status_code == 429
    assert client.get("/v1/videos", headers=bearer(EVE)).json()["error"]["code"] == "too_many_wrong_keys"
    assert client.get("/jobs", headers=bearer(BOB)).status_code == 429, "a right key, but new to this address"
    assert client.get("/jobs", headers=bearer(ADA)).status_code == 200, "one that was in use here before"
    lines = [record.getMessage() for record in caplog.records if "key_refused" in record.getMessage()]
    assert len(lines) == BURST
    assert lines[0] == "key_refused address=testclient path=/jobs limited=False"
    assert lines[-1].endswith("limited=True")


def test_a_wrong_key_that_is_sent_again_and_again_locks_nobody_out(client: TestClient) -> None:
    for _ in range(2 * BURST):  # a page that was open when its key was removed
        assert client.get("/jobs", headers={"Cookie": f"framefit_key={EVE}"}).status_code == 401
    assert client.get("/jobs", headers=bearer(BOB)).status_code == 200, "new behind the same address"
    for _ in range(BURST - 1):
        assert client.get("/jobs", headers=bearer(new_key())).status_code == 401
    assert client.get("/jobs", headers=bearer(ADA)).status_code == 429, "guesses count as before"


def test_a_request_without_a_key_is_no_wrong_key(client: TestClient) -> None:
    for _ in range(2 * BURST):
        assert client.get("/jobs").status_code == 401
    assert client.get("/jobs", headers=bearer(BOB)).status_code == 200


def test_an_address_may_try_again_as_time_passes_and_others_always() -> None:
    clock = Clock()
    failed = FailedKeys(clock)
    old, other = b"in use", b"another"
    failed.accepted("192.0.2.1", old)
    reached = [failed.refused("192.0.2.1", b"guess %d" % number) for number in range(BURST)]
    assert reached == [*[False] * (BURST - 1), True]
    assert failed.wait_seconds("192.0.2.1", other) == SECONDS_PER_KEY
    assert failed.wait_seconds("::ffff:192.0.2.1", other) == SECONDS_PER_KEY, "the same host"
    assert failed.wait_seconds("192.0.2.1", old) == 0
    assert failed.wait_seconds("192.0.2.2", other) == 0
    clock.now += SECONDS_PER_KEY
    assert failed.wait_seconds("192.0.2.1", other) == 0
    assert failed.refused("192.0.2.1", b"one more"), "one key per pause"
    clock.now += ACCEPTED_SECONDS
    for number in range(BURST):
        failed.refused("192.0.2.1", b"later guess %d" % number)
    assert failed.wait_seconds("192.0.2.1", old) > 0


def test_a_host_with_a_network_of_its_own_is_one_address() -> None:
    failed = FailedKeys(Clock())
    for number in range(BURST):
        failed.refused(f"2001:db8:0:1::{number:x}", b"guess %d" % number)
    assert failed.wait_seconds("2001:db8:0:1:ffff::1", b"") > 0
    assert failed.wait_seconds("2001:db8:0:2::1", b"") == 0


def test_a_greedy_key_does_not_keep_another_waiting(
    client: TestClient, app_store: JobStore, picture: bytes
) -> None:
    form = {"prompt": ["x"], "model": ["tiny"]}
    files = [("image", ("a.jpg", picture)) for _ in range(25)]
    for _ in range(2):
        answer = client.post("/generate/batch", data=form, files=files, headers=bearer(BOB))
        assert answer.status_code == 202, answer.text
    claims = [app_store.claim("w")]
    one = hand_in(client, ADA, picture, model="tiny").json()
    assert one["queue_position"] <= 2
    claims += [app_store.claim("w"), app_store.claim("w")]
    assert one["id"] in [claim and claim.job.id for claim in claims]


def test_the_only_key_of_a_service_queues_as_without_keys(
    client_of: Callable[..., TestClient], tmp_path: Path, picture: bytes
) -> None:
    client = client_of(Settings(data_dir=tmp_path, api_keys=(ADA,)))
    ids = [hand_in(client, ADA, picture, model="tiny").json()["id"] for _ in range(3)]
    urgent = hand_in(client, ADA, picture, model="tiny", priority="1").json()["id"]
    store: JobStore = client.app.state.service.store  # type: ignore[attr-defined]
    with store._database.reading() as connection:
        query = "select id, expected_seconds from jobs where status = 'queued' order by rank, id"
        rows = connection.exec_driver_sql(query).all()
    assert [tuple(row) for row in rows] == [(job_id, None) for job_id in (urgent, *ids)]


def test_a_worker_that_still_runs_a_deleted_job_is_listed_without_it(
    client: TestClient, app_store: JobStore, picture: bytes
) -> None:
    job_id = hand_in(client, ADA, picture, model="tiny").json()["id"]
    claim = app_store.claim("w")
    assert claim is not None
    app_store.heartbeat("w", device={"name": "cpu"}, job_id=job_id, token=claim.token)

    def shown(key: str) -> list[str | None]:
        answer = client.get("/devices", headers=bearer(key))
        assert answer.status_code == 200, answer.text
        return [one["job_id"] for one in answer.json()["devices"]]

    assert (shown(ADA), shown(BOB)) == ([job_id], [job_id])
    assert client.post(f"/jobs/{job_id}/delete", headers=bearer(ADA)).is_success
    assert (shown(ADA), shown(BOB)) == ([None], [None])
