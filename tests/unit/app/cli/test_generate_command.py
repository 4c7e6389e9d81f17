"""`framefit generate` against a service behind a real socket: the job's id, Ctrl-C, results for programs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from served import served
from waiting import wait_for

from app.api import create_app
from app.artifacts.local_folder import job_artifacts
from app.cli.generate import _canceled, _download
from app.client import Client, ClientError
from app.config import Settings
from app.jobs import JobError, JobStatus
from app.scheduling.admission import LoadProfile
from app.store import JobStore

Framefit = Callable[..., Any]
DECODE = {
    "strategy": "batched",
    "frames_per_chunk": 4,
    "exact": True,
    "reason": "fastest",
    "detail": "batched needs at most 1.0 MiB",
    "predicted_peak_bytes": 2**20,
    "measured_peak_bytes": 2**20,
    "tiles": {"rows": 1, "columns": 1},
    "seconds": 1.0,
    "retries": 0,
}


@pytest.fixture
def service(tmp_path: Path, load_profile: LoadProfile, make_picture: Any) -> Iterator[tuple[str, JobStore]]:
    """The address of a service without workers, and its job table; `photo.jpg` lies in the test's folder."""
    (tmp_path / "photo.jpg").write_bytes(make_picture())
    app = create_app(Settings(data_dir=tmp_path / "served"), load_profile=load_profile)
    with served(app, lifespan="on") as (host, port):
        yield f"http://{host}:{port}", app.state.service.store


def only_job(store: JobStore) -> Any:
    return next(iter(store.page(limit=1)), None)


def test_ctrl_c_cancels_the_job_and_says_so_with_its_id(
    service: tuple[str, JobStore], tmp_path: Path
) -> None:
    url, store = service
    command = [sys.executable, "-m", "app", "generate", str(tmp_path / "photo.jpg"), "a wall", "--url", url]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "out.mp4")],
        env={**os.environ, "COLUMNS": "200"},
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a script passes on that the signal is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        job_id = only_job(store).id
        assert first == f"Job {job_id} is queued. Ctrl-C cancels it.\n"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert f"Job {job_id} is canceled" in rest
    assert "Traceback" not in rest
    assert store.get(job_id).status is JobStatus.CANCELED
    assert not (tmp_path / "out.mp4").exists()


def test_a_job_that_cannot_be_canceled_is_said_to_go_on() -> None:
    with closing(Client("http://127.0.0.1:1")) as client:
        sentence = _canceled(client, "the-job")
    assert sentence.startswith("Job the-job was not canceled (")
    assert sentence.endswith("and goes on. To end it: framefit delete the-job")


def test_the_result_is_json_and_a_failure_names_the_job(
    service: tuple[str, JobStore], framefit: Framefit, tmp_path: Path
) -> None:
    url, store = service
    jobs = tmp_path / "served" / "jobs"

    def work(error: JobError | None) -> None:
        claim = wait_for(lambda: store.claim("w"), 60)
        job_artifacts(jobs, claim.job.id).make().video.write_bytes(b"a video")
        if error is None:
            done = {"result": {"frames": 25}, "decode": DECODE, "durations": {}}
            store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, **done)
        else:
            store.finish(claim.job.id, claim.token, status=JobStatus.FAILED, error=error)

    def generate(error: JobError | None = None) -> Any:
        with ThreadPoolExecutor(1) as worker:
            worked = worker.submit(work, error)
            ended = framefit("generate", "photo.jpg", "a wall", "-o", "out.mp4", "--url", url, "--json")
            worked.result()
        return ended

    ended = generate()
    assert ended.exit_code == 0, ended.output
    told = json.loads(ended.stdout)
    assert told["out"] == "out.mp4"
    assert (told["job"]["id"], told["job"]["status"]) == (only_job(store).id, "succeeded")
    assert (tmp_path / "out.mp4").read_bytes() == b"a video"
    with (
        closing(Client(url)) as client,
        pytest.raises(ClientError, match=f"job {told['job']['id']} stays in"),
    ):
        _download(client, told["job"]["id"], tmp_path / "gone" / "out.mp4", None)
    ended = generate(JobError("internal_error", "the worker has a fault"))
    assert ended.exit_code == 1
    assert f"job {only_job(store).id} is failed: the worker has a fault" in " ".join(ended.stderr.split())
