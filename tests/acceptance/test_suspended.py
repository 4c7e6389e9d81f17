"""A service that was suspended as a whole goes on where it was, and no job loses an attempt."""

import signal
from contextlib import closing

from running_service import StartService
from waiting import wait_for

from app.store import open_store

# Denoises long enough to be caught at it on a fast machine.
FIELDS = {"width": 256, "height": 256, "num_frames": 49, "num_inference_steps": 24, "fps": 24}
LEASE_SECONDS = 8.0


def test_a_service_suspended_for_longer_than_its_leases_does_not_begin_a_job_again(
    start_service: StartService,
) -> None:
    service = start_service(FRAMEFIT_LEASE_SECONDS=str(LEASE_SECONDS), FRAMEFIT_HEARTBEAT_SECONDS="1")
    job_id = service.submit(**FIELDS)["id"]
    service.wait_until(job_id, lambda job: bool(job["stage"] == "denoising" and job["progress"] > 0.1))
    everyone = service.processes()
    for process in everyone:
        process.send_signal(signal.SIGSTOP)
    with closing(open_store(service.settings)) as store:
        lease_until = store.get(job_id).lease_until or 0.0
        wait_for(lambda: store.time() > lease_until + 1, 60)
    # The worker comes last: by then the others have seen that its lease is over.
    everyone.sort(key=lambda process: "worker" in process.cmdline())
    for process in everyone:
        process.send_signal(signal.SIGCONT)
    job = service.finished(job_id)
    assert job["attempts"] == 1
    kinds = service.kinds(job_id)
    assert (kinds.count("claimed"), kinds.count("denoised"), kinds.count("requeued")) == (1, 1, 0)
