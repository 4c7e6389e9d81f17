"""Traces as a collector receives them: OpenTelemetry's own messages over HTTP, decoded by its own classes."""

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pydantic import ValidationError
from starlette.testclient import TestClient
from waiting import wait_for

from app.config import Settings
from app.jobs import JobStatus
from app.service.tracing import sender
from app.service.tracing.otlp import Collector
from app.service.tracing.spans import trace_id_of
from app.store import JobStore

WAIT_SECONDS = 60.0
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class FakeCollector:
    """Takes traces on a port of its own, or answers 503 while it is `sick`."""

    def __init__(self) -> None:
        self.sick = False
        self.refuses = 0  # the id of a trace
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(collector.take(body))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> int:
        if self.sick or (self.refuses and self.refuses.to_bytes(16) in body):
            return 400  # final: the library itself repeats what is answered with 503, for some seconds
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({one.key: one.value.string_value for one in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return 200

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCollector]:
    monkeypatch.setattr(sender, "EVERY_SECONDS", 0.05)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    fake = FakeCollector()
    yield fake
    fake.close()


@pytest.fixture
def client(client_of: Callable[..., TestClient], tmp_path: Path, collector: FakeCollector) -> TestClient:
    settings = Settings(data_dir=tmp_path, poll_seconds=0.02, traces_endpoint=collector.endpoint)
    return client_of(settings)


def submit(client: TestClient, picture: bytes, **headers: str) -> str:
    form = {"prompt": "a secret garden", "model": "tiny"}
    answer = client.post("/generate", data=form, files={"image": ("p.jpg", picture)}, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def end(client: TestClient, job_id: str) -> None:
    store: JobStore = client.app.state.service.store  # type: ignore[attr-defined]
    claim = store.claim("host/cpu/1", models=["tiny"], lease_seconds=600)
    assert claim is not None
    assert claim.job.id == job_id
    assert store.finish(job_id, claim.token, status=JobStatus.SUCCEEDED)


def attributes(span: Span) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_job_that_ended_arrives_as_a_trace(
    client: TestClient, picture: bytes, collector: FakeCollector
) -> None:
    job_id = submit(client, picture)
    end(client, job_id)
    wait_for(lambda: collector.named("job"), WAIT_SECONDS)
    (job,), (queued,), (attempt,) = (collector.named(name) for name in ("job", "queued", "attempt"))
    assert int.from_bytes(job.trace_id) == trace_id_of(job_id)
    assert not job.parent_span_id
    assert queued.parent_span_id == attempt.parent_span_id == job.span_id
    assert job.start_time_unix_nano == queued.start_time_unix_nano < queued.end_time_unix_nano
    assert queued.end_time_unix_nano == attempt.start_time_unix_nano
    assert attributes(job)["framefit.outcome"] == "succeeded"
    assert attributes(attempt)["framefit.worker_id"] == "host/cpu/1"
    assert collector.resources[0]["service.name"] == "framefit"
    assert "secret garden" not in str(collector.spans)


def test_a_request_continues_its_callers_trace_and_leads_to_the_job(
    client: TestClient, picture: bytes, collector: FakeCollector
) -> None:
    job_id = submit(client, picture, traceparent=f"00-{TRACE}-{PARENT}-01")
    client.get("/jobs/none")
    submit(client, picture, traceparent=f"00-{TRACE}-{PARENT}-00")  # its caller keeps no spans
    client.get("/healthz")
    client.get("/jobs")
    wait_for(lambda: collector.named("GET /jobs"), WAIT_SECONDS)
    (request,) = collector.named("POST /generate")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request)["http.response.status_code"] == 202
    assert attributes(request)["framefit.job.id"] == job_id
    assert int.from_bytes(request.links[0].trace_id) == trace_id_of(job_id)
    (unknown,) = collector.named("GET /jobs/{job_id}")
    assert attributes(unknown)["http.response.status_code"] == 404
    assert unknown.status.code == Status.STATUS_CODE_UNSET
    assert not collector.named("GET /healthz")


def test_jobs_wait_for_a_collector_that_is_away(
    client: TestClient, picture: bytes, collector: FakeCollector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.sick = True
    job_id = submit(client, picture)
    end(client, job_id)
    wait_for(lambda: "traces_not_sent" in caplog.text, WAIT_SECONDS)
    assert client.get("/healthz").status_code == 200
    collector.sick = False
    wait_for(lambda: collector.named("job"), WAIT_SECONDS)
    assert len(collector.named("job")) == 1
    assert caplog.text.count("traces_not_sent") == 1


def test_the_oldest_of_too_many_waiting_jobs_go_and_are_counted(
    client: TestClient,
    picture: bytes,
    collector: FakeCollector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sender, "MOST_WAITING", 2)
    collector.sick = True
    ids = [submit(client, picture) for _ in range(3)]
    for job_id in ids:
        end(client, job_id)
    wait_for(lambda: "traces_dropped jobs=1" in caplog.text, WAIT_SECONDS)
    collector.sick = False
    wait_for(lambda: len(collector.named("job")) == 2, WAIT_SECONDS)
    assert {int.from_bytes(job.trace_id) for job in collector.named("job")} == set(map(trace_id_of, ids[1:]))


def test_a_trace_that_is_refused_for_good_holds_back_no_other(
    client: TestClient, picture: bytes, collector: FakeCollector, caplog: pytest.LogCaptureFixture
) -> None:
    refused = submit(client, picture)
    collector.refuses = trace_id_of(refused)
    end(client, refused)
    for _ in range(sender.MOST_REFUSALS + 1):
        before = len(collector.named("job"))
        end(client, submit(client, picture))
        wait_for(lambda before=before: len(collector.named("job")) > before, WAIT_SECONDS)
    wait_for(lambda: "traces_dropped jobs=1" in caplog.text, WAIT_SECONDS)


def test_a_job_with_very_many_events_is_told_from_its_last_ones(
    client: TestClient, picture: bytes, collector: FakeCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MOST_EVENTS", 2)
    monkeypatch.setattr(sender, "PAGE", 1)
    job_id = submit(client, picture)
    end(client, job_id)
    wait_for(lambda: collector.named("job"), WAIT_SECONDS)
    assert not collector.named("queued"), "its first event is left out"


def test_a_collector_that_never_answers_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "120")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        collector = Collector(f"http://127.0.0.1:{silent.getsockname()[1]}")
        requests = collector.requests()
        requests.add("/jobs", "GET", 200, start=1.0, end=2.0, headers={}, job_id=None)
        started = time.monotonic()
        requests.close()
        collector.close()
    assert time.monotonic() - started < 60.0


def test_without_an_endpoint_opentelemetrys_sdk_is_not_imported() -> None:
    sdk = ("opentelemetry.sdk", "opentelemetry.exporter")
    program = f"import sys, app.api.app; print([name for name in sys.modules if name.startswith({sdk})])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://127.0.0.1:4317"])
def test_an_endpoint_that_is_no_http_address_is_refused(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="OTLP over HTTP"):
        Settings(data_dir=tmp_path, traces_endpoint=endpoint)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ValidationError, match=r"pip install 'framefit\[otel\]'"):
        Settings(data_dir=tmp_path, traces_endpoint="http://127.0.0.1:4318")
