"""A decode that does not fit now, but could: it waits for a bounded time, and says so."""

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from running_service import StartService

# A quarter of what is free is held; a machine's own ups and downs by half of that do not change the outcome.
HELD_BYTES = psutil.virtual_memory().available // 4
MARGIN_BYTES = HELD_BYTES // 2

HOLD = f"held = bytearray({HELD_BYTES}); held[::4096] = b'x' * len(held[::4096]); print(flush=True); input()"


@pytest.fixture
def neighbour() -> Iterator[subprocess.Popen[str]]:
    """A process that holds memory until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_job_waits_for_a_neighbours_memory_and_continues_when_it_is_freed(
    start_service: StartService, neighbour: subprocess.Popen[str]
) -> None:
    # All that is free now, and a little more, is to be left alone: nothing fits until the neighbour goes.
    reserve = psutil.virtual_memory().available + MARGIN_BYTES
    service = start_service(FRAMEFIT_RESERVE_BYTES=str(reserve), FRAMEFIT_MEMORY_WAIT_SECONDS="200")
    job_id = service.submit(num_inference_steps=1)["id"]
    service.wait_until(job_id, lambda job: job["stage"] == "waiting_for_memory")
    neighbour.kill()
    job = service.finished(job_id)
    assert job["decode"]["exact"] is True
    (waiting,) = [event for event in service.events(job_id) if event.kind == "waiting_for_memory"]
    assert waiting.data["needed_bytes"] > 0
    assert waiting.data["free_bytes"] < reserve


def test_waiting_ends_in_a_failure_that_keeps_the_latents(
    start_service: StartService, neighbour: subprocess.Popen[str]
) -> None:
    reserve = psutil.virtual_memory().available + MARGIN_BYTES
    service = start_service(FRAMEFIT_RESERVE_BYTES=str(reserve), FRAMEFIT_MEMORY_WAIT_SECONDS="1")
    job_id = service.submit(num_inference_steps=1)["id"]
    job = service.finished(job_id, "failed")
    assert job["error"]["code"] == "does_not_fit"
    assert (service.settings.jobs_dir / job_id / "latents.safetensors").exists()

    neighbour.kill()
    neighbour.wait()
    service.http.post(f"/jobs/{job_id}/redecode").raise_for_status()
    service.finished(job_id)
    kinds = service.kinds(job_id)
    assert kinds.count("denoised") == 1
    assert kinds.count("resumed_from_latents") == 1
