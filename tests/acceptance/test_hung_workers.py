"""A worker that lives but does nothing any more: it is killed and started again, and its job ends."""

import re
import signal

from running_service import START_SECONDS, StartService
from waiting import wait_for

# Denoises long enough to be caught at it on a fast machine.
FIELDS = {"width": 256, "height": 256, "num_frames": 49, "num_inference_steps": 60, "fps": 24}
SHORT = {
    "FRAMEFIT_LEASE_SECONDS": "8",
    "FRAMEFIT_HEARTBEAT_SECONDS": "1",
    "FRAMEFIT_WORKER_SILENCE_SECONDS": "10",
}


def test_a_worker_that_hangs_is_replaced_and_its_job_goes_on(start_service: StartService) -> None:
    service = start_service(**SHORT)
    hung = service.worker()
    job_id = service.submit(**FIELDS)["id"]
    service.wait_until(job_id, lambda job: bool(job["stage"] == "denoising" and job["progress"] > 0.1))
    hung.send_signal(signal.SIGSTOP)
    hung.wait(START_SECONDS)
    assert service.worker().pid != hung.pid
    job = service.finished(job_id)
    assert job["attempts"] == 1, "the hang is not the job's fault"
    reasons = [event.data["reason"] for event in service.events(job_id) if event.kind == "requeued"]
    assert reasons in (["lease_expired"], ["worker_hung"])
    assert re.search(rf"worker_hung worker_id=\S+ pid={hung.pid} ", service.log_path.read_text())
    counted = 'framefit_worker_ends_total{gpu="cpu",reason="worker_hung"}'
    wait_for(lambda: service.metric(counted) == 1, 60)
