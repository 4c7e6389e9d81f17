"""The real service and the real `framefit doctor` on a driver whose answers are odd.

The card's name is not UTF-8, and the driver does not report its memory. The build of torch decides whether
the card is used. A build without CUDA uses the CPU, and every view of the service shows the reason.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nvml_stub
import pytest
import torch
from nvml_stub import StubAnswer, StubGpu
from running_service import RunningService
from waiting import wait_for

NOT_UTF8 = StubAnswer("nvmlDeviceGetName", text=b"\xf8\x95\xa0\x81")
NOT_SUPPORTED = StubAnswer("nvmlDeviceGetMemoryInfo", code=3)
CARD = StubGpu()


@pytest.fixture
def machine(tmp_path: Path, nvml_library: Path) -> dict[str, str]:
    """Environment of a process on such a machine."""
    nvml_stub.write_machine(tmp_path / "machine", [CARD], [NOT_UTF8, NOT_SUPPORTED])
    return nvml_stub.environment(nvml_library, tmp_path / "machine")


@pytest.fixture
def service(machine: dict[str, str], tmp_path: Path) -> Iterator[RunningService]:
    environ = {**machine, "FRAMEFIT_DEVICES": "auto", "FRAMEFIT_MODEL": "photo-pan"}
    service = RunningService(tmp_path / "data", environ)
    yield service
    service.stop()


@pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch has CUDA")
def test_a_card_that_torch_cannot_use_is_warned_of_wherever_somebody_looks(
    service: RunningService,
) -> None:
    told = service.http.get("/devices").raise_for_status().json()
    (gpu,) = told["gpus"]
    assert (gpu["uuid"], gpu["name"], gpu["state"]) == (CARD.uuid, "", "memory_unknown")
    (unused,) = told["unused_gpus"]
    assert (unused["uuid"], unused["reason"]) == (CARD.uuid, "no_cuda_build")
    assert "CUDA build of torch" in unused["advice"]
    wait_for(lambda: service.metric('framefit_gpu_unused{reason="no_cuda_build"}') == 1, 60, service.log)
    (line,) = [line for line in service.log_path.read_text().splitlines() if "gpu_unused" in line]
    assert all(part in line for part in ("WARNING", CARD.uuid, "no_cuda_build", "jobs_run_on=cpu")), line
    assert "process_started name=worker-cpu" in service.log_path.read_text()
    assert "Traceback" not in service.log_path.read_text()


def test_the_doctor_ends_with_findings_and_no_traceback(machine: dict[str, str], tmp_path: Path) -> None:
    environ = {**machine, "FRAMEFIT_DATA_DIR": str(tmp_path / "data"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "app", "doctor", "--json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr
    told = [one for one in json.loads(done.stdout)["findings"] if one["subject"] in ("gpu", "devices")]
    assert any(CARD.uuid in one["detail"] for one in told)
    assert "reboot" not in str(told)
