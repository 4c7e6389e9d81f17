"""The real pynvml over the stub driver, in subprocesses: a process loads a driver once and for all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nvml_stub
import pytest
from nvml_stub import StubGpu

from adaptive.device.nvml import GpuInfo, Nvml, NvmlState, cuda_visible_uuid

GIB = 2**30
CARD_A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
CARD_B = "GPU-bbbbbbbb-0000-0000-0000-000000000002"

SHOW = """
import dataclasses, json, sys
from adaptive.device.nvml import Nvml
with Nvml() as nvml:
    seen = {"state": nvml.state, "devices": [dataclasses.asdict(d) for d in nvml.devices()],
            "read": [dataclasses.asdict(nvml.read(uuid)) for uuid in sys.argv[1:]]}
print(json.dumps(seen))
"""


def ask(library: Path, machine: Path, *uuids: str, **environ: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *uuids],
        env={**nvml_stub.environment(library, machine), **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    return tmp_path / "machine.txt"


def test_every_fact_of_a_card_is_read(nvml_library: Path, machine: Path) -> None:
    card = StubGpu(CARD_A, "H200", 100 * GIB, 30 * GIB, 40, processes={11: 50 * GIB, 12: 20 * GIB})
    nvml_stub.write_machine(machine, [card])
    seen = ask(nvml_library, machine, CARD_A)
    assert seen["state"] == "ok"
    assert seen["devices"] == seen["read"]
    assert seen["read"][0] == {
        "uuid": CARD_A,
        "index": 0,
        "name": "H200",
        "total_bytes": 100 * GIB,
        "free_bytes": 30 * GIB,
        "used_bytes": 70 * GIB,
        "utilization": 0.4,
        "processes": [{"pid": 11, "used_bytes": 50 * GIB}, {"pid": 12, "used_bytes": 20 * GIB}],
        "state": "ok",
    }


def test_free_memory_is_read_live_while_the_process_runs(nvml_library: Path, machine: Path) -> None:
    nvml_stub.write_machine(machine, [StubGpu(CARD_A, free_bytes=9 * GIB)])
    watch = "\n".join(
        [
            "from adaptive.device.nvml import Nvml",
            "nvml = Nvml()",
            "while input():",
            f"    print(nvml.read({CARD_A!r}).free_bytes, flush=True)",
        ]
    )
    with subprocess.Popen(
        [sys.executable, "-c", watch],
        env=nvml_stub.environment(nvml_library, machine),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = []
        for free_bytes in (9 * GIB, 2 * GIB, 17 * GIB):
            nvml_stub.write_machine(machine, [StubGpu(CARD_A, free_bytes=free_bytes)])
            process.stdin.write("go\n")
            process.stdin.flush()
            seen.append(int(process.stdout.readline()))
        process.stdin.write("\n")
    assert seen == [9 * GIB, 2 * GIB, 17 * GIB]


@pytest.mark.parametrize(
    ("gpus", "environ", "state", "read_state"),
    [
        ([], {}, "no_gpu", "not_found"),
        ([StubGpu(CARD_B)], {}, "ok", "not_found"),
        ([StubGpu(CARD_A, lost=True)], {}, "ok", "gpu_lost"),
        ([StubGpu(CARD_A)], {"NVML_STUB_INIT_ERROR": "9"}, "no_driver", "no_driver"),
        ([StubGpu(CARD_A)], {"NVML_STUB_INIT_ERROR": "999"}, "error", "error"),
    ],
)
def test_each_broken_machine_has_a_clear_state(
    nvml_library: Path,
    machine: Path,
    gpus: list[StubGpu],
    environ: dict[str, str],
    state: str,
    read_state: str,
) -> None:
    nvml_stub.write_machine(machine, gpus)
    seen = ask(nvml_library, machine, CARD_A, **environ)
    assert seen["state"] == state
    assert seen["read"][0]["state"] == read_state
    assert seen["read"][0]["free_bytes"] == 0


def test_a_lost_card_does_not_hide_its_healthy_neighbour(nvml_library: Path, machine: Path) -> None:
    nvml_stub.write_machine(machine, [StubGpu(CARD_A, lost=True), StubGpu(CARD_B)])
    seen = ask(nvml_library, machine)
    assert [device["state"] for device in seen["devices"]] == ["gpu_lost", "ok"]
    assert seen["devices"][1]["uuid"] == CARD_B


def test_a_mig_slice_that_the_driver_does_not_know_is_not_found(nvml_library: Path, machine: Path) -> None:
    nvml_stub.write_machine(machine, [StubGpu(CARD_A)])
    seen = ask(nvml_library, machine, "MIG-00000000-1111-2222-3333-444444444444")
    assert seen["read"][0]["state"] == "not_found"


@pytest.mark.skipif(Nvml().state is not NvmlState.NO_DRIVER, reason="this machine has an NVIDIA driver")
def test_a_machine_without_a_driver_says_so() -> None:
    with Nvml() as nvml:
        assert nvml.devices() == ()
        assert nvml.read(CARD_A).state is NvmlState.NO_DRIVER
        assert nvml.driver_version is None


def gpu(uuid: str, name: str = "Card", index: int = 0) -> GpuInfo:
    return GpuInfo(uuid, index, name, GIB, GIB, 0, None, (), NvmlState.OK)


SAME = (gpu(CARD_A), gpu(CARD_B, index=1))
MIXED = (gpu(CARD_A, "Slow"), gpu(CARD_B, "Fast", 1))
MIG = "MIG-GPU-aaaaaaaa-0000-0000-0000-000000000001/1/0"


@pytest.mark.parametrize(
    ("visible", "order", "devices", "seen"),
    [
        (None, None, SAME, [CARD_A, CARD_B, None]),
        ("1", None, SAME, [CARD_B, None]),
        ("1,0", None, SAME, [CARD_B, CARD_A]),
        (f"{CARD_B},0", None, SAME, [CARD_B, CARD_A]),
        ("GPU-b", None, SAME, [CARD_B, None]),
        ("GPU-", None, SAME, [None]),  # ambiguous prefix
        ("0,7,1", None, SAME, [CARD_A, None]),  # the first invalid entry ends the list
        ("-1", None, SAME, [None]),
        ("", None, SAME, [None]),
        (MIG, None, SAME, [MIG]),
        ("0", None, MIXED, [None]),  # fastest first cannot be known from here
        ("0", "PCI_BUS_ID", MIXED, [CARD_A]),
        ("GPU-b", None, MIXED, [CARD_B]),
        (None, None, (), [None]),
    ],
)
def test_cuda_ordinals_map_to_the_uuids_that_cuda_would_use(
    visible: str | None, order: str | None, devices: tuple[GpuInfo, ...], seen: list[str | None]
) -> None:
    environ = {}
    if visible is not None:
        environ["CUDA_VISIBLE_DEVICES"] = visible
    if order is not None:
        environ["CUDA_DEVICE_ORDER"] = order
    mapped = [cuda_visible_uuid(i, devices=devices, environ=environ) for i in range(len(seen))]
    assert mapped == seen
