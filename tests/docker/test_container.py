"""The image and the compose files in a real engine: ordinary user, healthy, a job end to end, killed."""

import json
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from conftest import Project, docker
from PIL import Image
from scraped import total
from waiting import wait_for

START_SECONDS = 180
JOB_SECONDS = 240
# The ids of the worker processes: the image has no ps. The brackets keep the shell from finding itself.
WORKERS = (
    "for one in /proc/[0-9]*; do tr '\\0' ' ' < $one/cmdline 2>/dev/null "
    "| grep -q 'app[ ]worker' && basename $one; done; true"
)
FORM = {"prompt": "a slow pan", "model": "tiny", "num_inference_steps": "8", "seed": "1"}

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture
def service(project: Project) -> Iterator[Project]:
    """The service, up and healthy."""
    project.compose("up", "-d", "framefit")
    wait_for(
        lambda: health(project) == "healthy", START_SECONDS, lambda: project.compose("logs", "--tail", "50")
    )
    with project.http() as http:
        wait_for(
            lambda: http.get("/readyz").status_code == 200, START_SECONDS, lambda: http.get("/readyz").text
        )
    yield project
    project.compose("down", "--timeout", "10")


def health(project: Project) -> str:
    status: str = project.inspect()["State"]["Health"]["Status"]
    return status


def photo() -> bytes:
    picture = BytesIO()
    Image.linear_gradient("L").resize((256, 256)).convert("RGB").save(picture, "PNG")
    return picture.getvalue()


def submit(http: httpx.Client, **fields: str) -> str:
    def answer() -> httpx.Response:
        return http.post(
            "/generate", data=FORM | fields, files={"image": ("photo.png", photo(), "image/png")}
        )

    accepted = answer()
    deadline = time.monotonic() + START_SECONDS
    while accepted.status_code == 503 and time.monotonic() < deadline:  # the first start measures the model
        time.sleep(1)
        accepted = answer()
    assert accepted.status_code == 202, accepted.text
    job_id: str = accepted.json()["id"]
    return job_id


def job(http: httpx.Client, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/jobs/{job_id}").json()
    return found


def wait_for_video(http: httpx.Client, job_id: str) -> dict[str, Any]:
    ended = ("succeeded", "failed", "canceled")
    wait_for(lambda: job(http, job_id)["status"] in ended, JOB_SECONDS, lambda: json.dumps(job(http, job_id)))
    done = job(http, job_id)
    assert done["status"] == "succeeded", done
    video = http.get(f"/jobs/{job_id}/video")
    assert video.content[4:8] == b"ftyp"
    return done


def counted(http: httpx.Client) -> float:
    """The jobs that the metrics count as succeeded."""
    return total(http.get("/metrics").text, "framefit_jobs_total", outcome="succeeded")


def succeeded(http: httpx.Client) -> int:
    """The jobs that the job table has as succeeded."""
    return len(http.get("/jobs", params={"status": "succeeded", "limit": 100}).json()["jobs"])


def test_a_job_goes_through_the_container_as_an_ordinary_user_who_can_write_only_where_data_lives(
    service: Project,
) -> None:
    with service.http() as http:
        done = wait_for_video(http, submit(http))
    assert done["decode"]["exact"]
    assert docker("exec", service.container, "id", "-u").strip() == "10001"
    assert docker("exec", service.container, "cat", "/proc/1/comm").strip() == "tini"
    attempts = {
        path: docker(
            "exec", service.container, "sh", "-c", f"touch {path}/x 2>/dev/null && echo yes || echo no"
        ).strip()
        for path in ("/data", "/models", "/tmp", "/opt/framefit", "/etc")
    }
    assert attempts == {"/data": "yes", "/models": "yes", "/tmp": "yes", "/opt/framefit": "no", "/etc": "no"}
    host = service.inspect()["HostConfig"]
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)


def test_a_restarted_container_continues_the_job_that_it_was_killed_in(service: Project) -> None:
    with service.http() as http:
        job_id = submit(http, num_inference_steps="60")
        wait_for(
            lambda: job(http, job_id)["stage"] == "denoising", JOB_SECONDS, lambda: str(job(http, job_id))
        )
    docker("kill", service.container)
    service.compose("up", "-d", "framefit")
    wait_for(
        lambda: health(service) == "healthy", START_SECONDS, lambda: service.compose("logs", "--tail", "50")
    )
    with service.http() as http:
        wait_for_video(http, job_id)
        # The counters follow the job table at the distance of a poll.
        wait_for(
            lambda: counted(http) == succeeded(http),
            START_SECONDS,
            lambda: f"{counted(http)} counted, {succeeded(http)} succeeded",
        )


def test_a_container_whose_worker_is_stopped_gets_a_new_one(service: Project) -> None:
    def workers() -> list[str]:
        return docker("exec", service.container, "sh", "-c", WORKERS).split()

    (before,) = workers()
    docker("exec", service.container, "kill", "-STOP", before)
    wait_for(lambda: before not in workers() and len(workers()) == 1, START_SECONDS)
    with service.http() as http:
        wait_for_video(http, submit(http))


def test_the_container_passes_its_own_health_check_and_the_doctor(service: Project) -> None:
    docker("exec", service.container, "python", "-m", "app.service.healthcheck")
    docker("exec", service.container, "framefit", "doctor")


def test_any_user_of_group_0_may_run_the_image(project: Project) -> None:
    arguments = ("run", "--rm", "--no-deps", "-T", "--user", "23456:0", "framefit", "doctor", "--json")
    assert '"subject": "disk",\n      "standing": "ok"' in project.compose(*arguments)


def test_stopping_lets_the_service_end_by_itself(service: Project) -> None:
    service.compose("stop", "framefit")
    state = service.inspect()["State"]
    assert (state["Running"], state["ExitCode"], state["OOMKilled"]) == (False, 0, False)


def test_without_keys_the_service_refuses_a_public_address_unless_allowed(project: Project) -> None:
    arguments = ("run", "--rm", "--no-deps", "-T", "-e", "FRAMEFIT_ALLOW_PUBLIC=false", "framefit", "serve")
    with pytest.raises(AssertionError, match=r"FRAMEFIT_ALLOW_PUBLIC|API_KEYS"):
        project.compose(*arguments)
