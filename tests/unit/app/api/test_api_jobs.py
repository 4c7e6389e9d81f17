"""Routes about jobs: list, look, follow, fetch, cancel, decode again."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.artifacts.local_folder import job_artifacts
from app.config import Settings
from app.jobs import JobStatus, Stage
from app.store import JobStore

Post = Callable[..., dict[str, Any]]
VIDEO = bytes(range(256)) * 40
DECODE = {
    "strategy": "chunked",
    "frames_per_chunk": 2,
    "exact": True,
    "reason": "fastest_that_fits",
    "predicted_peak_bytes": 100,
    "measured_peak_bytes": 90,
    "free_bytes_at_decision": 120,
    "seconds": 1.5,
    "retries": 0,
}


@pytest.fixture
def finish(app_store: JobStore, settings: Settings) -> Callable[[str], None]:
    """Does a worker's part: claims the next job and ends it with a video."""

    def run(status: str = "succeeded") -> None:
        claim = app_store.claim("w")
        assert claim is not None
        app_store.progress(claim.job.id, claim.token, stage=Stage.DENOISING, progress=0.5)
        app_store.checkpoint(claim.job.id, claim.token, "latents", {"steps": 4, "seconds": 1.0})
        artifacts = job_artifacts(settings.jobs_dir, claim.job.id).make()
        artifacts.video.write_bytes(VIDEO)
        result = {"frames": 25, "width": 256, "height": 256, "fps": 12, "video_path": "secret"}
        app_store.finish(
            claim.job.id,
            claim.token,
            status=JobStatus(status),
            decode=DECODE,
            result=result if status == "succeeded" else None,
            durations={"denoising": 2.0, "decoding": 1.5},
        )

    return run


def test_a_finished_job_shows_its_decode_and_its_video(client: TestClient, submit: Post, finish: Any) -> None:
    job = submit()
    finish()
    shown = client.get(job["links"]["self"]).json()
    assert (shown["status"], shown["stage"], shown["progress"]) == ("succeeded", "finished", 1.0)
    assert shown["decode"] == DECODE
    assert "video_path" not in shown["result"]
    assert shown["finished_at"].endswith("Z")
    video = client.get(shown["links"]["video"])
    assert video.content == VIDEO
    assert video.headers["content-type"] == "video/mp4"


def test_a_video_is_served_in_ranges_and_not_again_where_it_is_known(
    client: TestClient, submit: Post, finish: Any
) -> None:
    url = f"/jobs/{submit()['id']}/video"
    finish()
    part = client.get(url, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, VIDEO[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(VIDEO)}"
    etag = part.headers["etag"]
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.get(url, headers={"Range": "bytes=999999-"}).status_code == 416


def test_a_job_without_a_video_says_why(client: TestClient, submit: Post, finish: Any) -> None:
    url = f"/jobs/{submit()['id']}/video"
    waiting = client.get(url)
    assert (waiting.status_code, waiting.json()["code"]) == (409, "no_video")
    assert waiting.headers["retry-after"]
    finish("failed")
    failed = client.get(url)
    assert (failed.json()["job_status"], "retry-after" in failed.headers) == ("failed", False)


def test_an_expired_result_says_so_everywhere(
    client_of: Callable[..., TestClient], tmp_path: Path, picture: bytes
) -> None:
    client = client_of(Settings(data_dir=tmp_path, result_ttl_seconds=0.001))
    store: JobStore = client.app.state.service.store  # type: ignore[attr-defined]
    job = client.post("/generate", data={"prompt": "x"}, files={"image": ("a", picture)}).json()
    claim = store.claim("w")
    assert claim is not None
    store.finish(claim.job.id, claim.token, status=JobStatus.SUCCEEDED, result={"frames": 25})
    deadline = time.monotonic() + 60
    while not store.get(job["id"]).expired:  # the service looks for such results, too, and may be first
        assert time.monotonic() < deadline
        store.expire_results(lambda _id: None)
    shown = client.get(f"/jobs/{job['id']}").json()
    assert (shown["status"], shown["expired"], "video" in shown["links"]) == ("succeeded", True, False)
    gone = client.get(f"/jobs/{job['id']}/video")
    assert (gone.status_code, gone.json()["code"]) == (410, "result_expired")


def test_jobs_are_listed_by_filter_and_page(client: TestClient, submit: Post, finish: Any) -> None:
    ids = [submit()["id"] for _ in range(3)]
    finish()
    first = client.get("/jobs", params={"limit": 2}).json()
    rest = client.get("/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in first["jobs"] + rest["jobs"]] == ids[::-1]
    assert rest["next_cursor"] is None
    assert [job["id"] for job in client.get("/jobs", params={"status": "succeeded"}).json()["jobs"]] == ids[
        :1
    ]
    bad = client.get("/jobs", params={"status": "done"})
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_query_parameter")


def test_a_job_is_canceled_once(client: TestClient, submit: Post, finish: Any) -> None:
    queued, ended = submit(), submit(priority=9)
    finish()
    assert client.delete(f"/jobs/{queued['id']}").json()["status"] == "canceled"
    refused = client.delete(f"/jobs/{ended['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "wrong_state")


def test_unknown_jobs_are_not_found(client: TestClient) -> None:
    for method, path in (
        ("GET", "/jobs/x"),
        ("DELETE", "/jobs/x"),
        ("GET", "/jobs/x/video"),
        ("GET", "/jobs/x/events"),
        ("GET", "/jobs/..%2f..%2fetc/video"),
        ("POST", "/jobs/x/redecode"),
        ("GET", "/nonesuch"),
    ):
        answer = client.request(method, path)
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_job_is_decoded_again_with_another_strategy(client: TestClient, submit: Post, finish: Any) -> None:
    job = submit()
    assert client.post(f"/jobs/{job['id']}/redecode").json()["code"] == "wrong_state"
    finish()
    url = f"/jobs/{job['id']}/redecode"
    assert client.post(url, json={"prompt": "no"}).json()["code"] == "unknown_field"
    assert client.post(url, json={"decode_strategy": "quick"}).json()["code"] == "invalid_decode_strategy"
    again = client.post(url, json={"decode_strategy": "per_frame"})
    assert again.status_code == 202
    assert (again.json()["status"], again.json()["request"]["decode_strategy"]) == ("queued", "per_frame")
    assert client.get(f"/jobs/{job['id']}/video").content == VIDEO, "the video that is there stays meanwhile"


def test_a_strategy_that_needs_too_much_is_refused_with_what_the_smallest_way_needs(
    client: TestClient, submit: Post, finish: Any
) -> None:
    job = submit()
    finish()
    like_the_job = {"memory_budget_bytes": 2**40, "image_size": job["request"]["image_size"]}
    rungs = client.post("/plan", json=like_the_job).json()["rungs"]
    needs = {rung["strategy"]: rung["predicted_peak_bytes"] for rung in rungs}
    least = min(needs.values())
    wanted = {"decode_strategy": "batched", "memory_budget_bytes": needs["batched"] - 1}
    refused = client.post(f"/jobs/{job['id']}/redecode", json=wanted)
    body = refused.json()
    assert (refused.status_code, body["code"]) == (422, "does_not_fit")
    assert body["needed_bytes"] == needs["batched"]
    assert body["needed_bytes_with_strategy_auto"] == least < needs["batched"]
    assert f"decode_strategy=auto it needs {least:,} bytes" in body["detail"]
    assert f"batched decoding needs {needs['batched']:,} bytes" in body["detail"]
    wanted = {"decode_strategy": "auto", "memory_budget_bytes": least - 1}
    body = client.post(f"/jobs/{job['id']}/redecode", json=wanted).json()
    assert (body["needed_bytes"], body["needed_bytes_with_strategy_auto"]) == (least, None)
    assert "decode_strategy" not in body["detail"], "nothing was forced"


def messages(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def test_the_event_stream_of_an_ended_job_has_all_its_events(
    client: TestClient, submit: Post, finish: Any
) -> None:
    url = f"/jobs/{submit()['id']}/events"
    finish()
    told = messages(client.get(url).text)
    assert [message["event"] for message in told] == [
        "accepted",
        "claimed",
        "progress",
        "denoised",
        "finished",
    ]
    assert told[-1]["data"]["outcome"] == "succeeded"
    rest = messages(client.get(url, headers={"Last-Event-ID": told[1]["id"]}).text)
    assert rest == told[2:]
    assert client.get(url, headers={"Last-Event-ID": told[-1]["id"]}).status_code == 204
    assert client.get(url, headers={"Last-Event-ID": "x"}).json()["code"] == "invalid_last_event_id"


def test_followers_hear_what_happens_and_every_one_hears_the_end(
    client: TestClient, submit: Post, finish: Any
) -> None:
    url = f"/jobs/{submit()['id']}/events"
    heard: list[list[str]] = []

    def follow() -> None:
        heard.append([message["event"] for message in messages(client.get(url).text)])

    threads = [threading.Thread(target=follow) for _ in range(8)]
    for thread in threads:
        thread.start()
    finish()
    for thread in threads:
        thread.join(timeout=30)
    assert heard == [["accepted", "claimed", "progress", "denoised", "finished"]] * 8
