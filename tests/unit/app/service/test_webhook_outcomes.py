"""Each key's webhooks have a secret of their own, and everybody sees how a delivery went."""

import base64
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import served
from starlette.testclient import TestClient
from typer.testing import CliRunner

from app.api import create_app
from app.cli import app
from app.config import Settings, load_settings
from app.jobs import JobSpec, JobStatus
from app.service.exposition.metrics import ServiceMetrics
from app.service.keys import ApiKey, KeyRing, digest_of, format_hash, load_keys, new_key
from app.service.webhooks import SigningKeys, Webhooks, sign
from app.service.webhooks.sender import RETRY_SECONDS
from app.service.webhooks.signing import derived, shown
from app.store import JobStore, Submission

SECRET = "a secret of the operator"
ADA, BOB = (ApiKey(name, digest_of(new_key())) for name in ("ada", "bob"))


@pytest.fixture
def messages() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A receiver's URL, and what it got."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(500 if self.path == "/broken" else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


def sender(store: JobStore, *keys: ApiKey) -> Webhooks:
    signing_keys = SigningKeys(SECRET, KeyRing(keys))
    return Webhooks(store, signing_keys, lambda job_id: {"id": job_id}, allow_private=True)


def deliver(store: JobStore, webhooks: Webhooks) -> bool:
    delivery = store.take_delivery()
    if delivery is None:
        return False
    store.settle_delivery(delivery.id, webhooks.deliver(delivery))
    return True


def signed_by(headers: dict[str, str], body: bytes) -> Callable[[bytes], bool]:
    """Whether a secret made one of the message's signatures."""
    given, stamp = headers["webhook-signature"].split(), int(headers["webhook-timestamp"])
    return lambda secret: sign(secret, headers["webhook-id"], stamp, body) in given


def end_a_job_of(store: JobStore, spec: JobSpec, owner: str | None) -> str:
    job, _ = store.submit(Submission(spec, b"x", spec.fingerprint(b"x"), owner=owner))
    store.cancel(job.id)
    return job.id


def test_a_message_is_signed_with_its_keys_own_secret_and_no_other(
    store: JobStore, make_spec: Callable[..., JobSpec], messages: Any
) -> None:
    url, got = messages
    for owner in (ADA.owner, BOB.owner):
        end_a_job_of(store, make_spec(webhook_url=url), owner)
        assert deliver(store, sender(store, ADA, BOB))
    (of_ada, of_bob) = (signed_by(*message) for message in got)
    secret_of_ada, secret_of_bob = (derived(SECRET, key.owner, 1) for key in (ADA, BOB))
    assert (of_ada(secret_of_ada), of_ada(secret_of_bob), of_ada(SECRET.encode())) == (True, False, False)
    assert (of_bob(secret_of_ada), of_bob(secret_of_bob), of_bob(SECRET.encode())) == (False, True, False)


def test_without_keys_the_operators_secret_signs_as_before(
    store: JobStore, make_spec: Callable[..., JobSpec], messages: Any
) -> None:
    url, got = messages
    end_a_job_of(store, make_spec(webhook_url=url), None)
    deliver(store, sender(store))
    assert signed_by(*got[0])(SECRET.encode())


def test_after_a_rotation_the_new_and_the_previous_secret_both_fit(
    store: JobStore, make_spec: Callable[..., JobSpec], messages: Any
) -> None:
    url, got = messages
    rotated = ApiKey("ada", ADA.digest, webhook_generation=3)
    end_a_job_of(store, make_spec(webhook_url=url), ADA.owner)
    deliver(store, sender(store, rotated))
    fits = signed_by(*got[0])
    assert [fits(derived(SECRET, ADA.owner, generation)) for generation in (1, 2, 3)] == [False, True, True]


def test_nothing_is_sent_about_the_jobs_of_a_removed_key(
    store: JobStore, make_spec: Callable[..., JobSpec], messages: Any
) -> None:
    url, got = messages
    job_id = end_a_job_of(store, make_spec(webhook_url=url), ADA.owner)
    assert deliver(store, sender(store, BOB))
    assert got == []
    told = store.get(job_id).webhook or {}
    assert (told["state"], told["last_error"]) == ("given_up", "the job's API key was removed")


def test_the_command_shows_the_secret_that_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    file = tmp_path / "keys.toml"
    file.write_text(f'[keys.ada]\nhash = "{format_hash(key)}"\nwebhook_generation = 2\n')
    monkeypatch.setenv("FRAMEFIT_KEYS_FILE", str(file))
    monkeypatch.setenv("FRAMEFIT_WEBHOOK_SECRET", SECRET)
    done = CliRunner().invoke(app, ["key", "webhook-secret", "ada"])
    assert done.exit_code == 0, done.output
    owner = digest_of(key).hex()[:32]
    newest = SigningKeys(SECRET, load_keys(load_settings())).of(owner)[0]
    assert done.stdout.strip() == shown(newest)
    assert base64.b64decode(done.stdout.strip().removeprefix("whsec_")) == newest
    unknown = CliRunner().invoke(app, ["key", "webhook-secret", "eve"])
    assert "no key 'eve'" in unknown.stderr


@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
def test_an_empty_secret_leaves_webhooks_off(
    empty: str, client_of: Callable[..., TestClient], tmp_path: Path, picture: bytes
) -> None:
    client = client_of(Settings(data_dir=tmp_path, webhook_secret=empty))
    form = {"prompt": "x", "webhook_url": "https://example.org/"}
    answer = client.post("/generate", data=form, files={"image": ("a", picture)})
    assert (answer.status_code, answer.json()["code"]) == (422, "webhooks_off")


def shown_webhook(client: TestClient, job_id: str) -> Any:
    return client.get(f"/jobs/{job_id}").json()["webhook"]


def test_a_delivery_that_is_given_up_shows_in_the_job_the_events_and_the_metrics(
    store: JobStore, make_spec: Callable[..., JobSpec], clock: Any, messages: Any
) -> None:
    url, _ = messages
    job_id = end_a_job_of(store, make_spec(webhook_url=f"{url}/broken"), None)
    told = (store.get(job_id).webhook or {}).copy()
    assert (told["state"], told["attempts"], told["next_attempt_at"]) == ("pending", 0, clock.now)
    for attempt, pause in enumerate((*RETRY_SECONDS, None), start=1):
        assert deliver(store, sender(store))
        told = (store.get(job_id).webhook or {}).copy()
        assert (told["state"], told["attempts"]) == ("failed" if pause else "given_up", attempt)
        assert told["last_error"] == "the receiver answered 500"
        assert told["next_attempt_at"] == (None if pause is None else clock.now + pause)
        clock.now += pause or 0
    assert not deliver(store, sender(store))
    metrics = ServiceMetrics({"tiny": "AutoencoderKLLTXVideo"})
    events = store.events_after(0)
    metrics.apply(events)
    assert [event.data["state"] for event in events if event.kind == "webhook"] == [
        *["failed"] * len(RETRY_SECONDS),
        "given_up",
    ]
    counted = {
        sample.labels["outcome"]: sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if sample.name == "framefit_webhook_deliveries_total"
    }
    assert counted == {"delivered": 0, "failed": len(RETRY_SECONDS), "given_up": 1}


def test_a_job_says_what_became_of_its_newest_webhook(
    store: JobStore, make_spec: Callable[..., JobSpec], messages: Any
) -> None:
    url, _ = messages
    job_id = end_a_job_of(store, make_spec(webhook_url=url), None)
    first = store.take_delivery()
    assert first is not None
    store.queue_again(job_id, why="retry")
    store.cancel(job_id)
    assert deliver(store, sender(store))
    store.settle_delivery(first.id, sender(store).deliver(first))
    told = store.get(job_id).webhook or {}
    assert (told["state"], told["attempts"], told["last_error"]) == ("delivered", 1, None)
    assert told["delivery"] != first.id


def test_the_json_of_a_job_has_its_webhook(client: TestClient, submit: Any, app_store: JobStore) -> None:
    assert shown_webhook(client, submit()["id"]) is None
    spec = app_store.get(submit()["id"]).spec.model_copy(update={"webhook_url": "https://example.org/"})
    job_id = app_store.add(spec, b"x").id
    waiting = {"state": "pending", "attempts": 0, "last_error": None, "next_attempt_at": None}
    assert shown_webhook(client, job_id) == waiting
    app_store.cancel(job_id)
    assert shown_webhook(client, job_id)["next_attempt_at"] is not None


def test_a_stream_ends_at_the_jobs_end_though_its_webhook_is_told_of_later(
    settings: Settings, load_profile: Any, make_spec: Callable[..., JobSpec], messages: Any
) -> None:
    url, _ = messages
    application = create_app(settings, load_profile=load_profile)
    store: JobStore = application.state.service.store
    with (
        served(application) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client,
    ):
        job_id = end_a_job_of(store, make_spec(webhook_url=url), None)
        assert deliver(store, sender(store))
        assert store.get(job_id).status is JobStatus.CANCELED
        whole = client.get(f"/jobs/{job_id}/events")  # it would wait for ever
        kinds = [line.removeprefix("event: ") for line in whole.text.splitlines() if line.startswith("event")]
        assert kinds == ["accepted", "canceled", "finished"]
        ids = [line.removeprefix("id: ") for line in whole.text.splitlines() if line.startswith("id:")]
        again = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": ids[-1]})
        assert again.status_code == 204
