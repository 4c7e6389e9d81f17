"""The real pynvml over the stub driver, in subprocesses: a process loads a driver once and for all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nvml_stub
import pytest
from nvml_stub import StubAnswer, StubGpu, StubMig

from adaptive.device.nvml import GpuInfo, Nvml, NvmlState
from adaptive.device.visible_devices import cuda_visible_uuid, visible_uuids

GIB = 2**30
CARD_A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
CARD_B = "GPU-bbbbbbbb-0000-0000-0000-000000000002"
MIG_1 = "MIG-11111111-0000-0000-0000-0000000000a1"
MIG_2 = "MIG-22222222-0000-0000-0000-0000000000a2"
NOTHING = 2**64 - 1  # what some drivers answer for "not available"

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
        timeout=500,
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


CALLS = (
    "nvmlInitWithFlags",
    "nvmlShutdown",
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetCudaDriverVersion",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
)

ASK_EVERYTHING = """
import json, sys
from pathlib import Path
from adaptive.device.nvml import Nvml
card, mig, *calls = sys.argv[3:]
lines = Path(sys.argv[1]).read_text()
answers, texts = json.loads(sys.argv[2])
for call in calls:
    for answer in answers + texts * call.endswith(("UUID", "Name", "DriverVersion")):
        Path(sys.argv[1]).write_text(f"{lines}answer call={call} {answer}\\n")
        with Nvml() as nvml:
            said = [nvml.state, nvml.driver_version, nvml.cuda_version, nvml.devices(), nvml.read(card)]
            said += [nvml.read(mig)]
        for gpu in (*said[3], *said[4:]):
            assert 0 <= gpu.free_bytes <= gpu.total_bytes < 2**50, (call, answer, gpu)
            assert gpu.utilization is None or 0 <= gpu.utilization <= 1, (call, answer, gpu)
            assert (gpu.state == "ok") == (gpu.total_bytes > 0), (call, answer, gpu)
            assert gpu.name.isprintable() and gpu.uuid.isascii(), (call, answer, gpu)
"""


def test_no_answer_to_any_call_is_raised_or_shown_as_it_is(nvml_library: Path, machine: Path) -> None:
    codes = [1, 2, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 17, 18, 25, 28, 999, 12345, -1]
    numbers = [0, 101, 10**6, 2**31 - 1, NOTHING]
    texts = ["bytes=", "bytes=f895a081", "bytes=0a1b5b33316d", "fill=41", "fill=ff", "bytes=4750552d312c32"]
    answers = [*(f"code={code}" for code in codes), *(f"value={number}" for number in numbers)]
    mig = StubMig(gpu=1)
    gpus = [StubGpu(CARD_A, processes={1: GIB}), StubGpu(CARD_B)]
    nvml_stub.write_machine(machine, gpus, migs=[mig])
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ASK_EVERYTHING,
            machine,
            json.dumps([answers, texts]),
            CARD_A,
            mig.uuid,
            *CALLS,
        ],
        env=nvml_stub.environment(nvml_library, machine),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("total", "free"), [(NOTHING, NOTHING), (NOTHING, 0), (24 * GIB, NOTHING), (24 * GIB, 25 * GIB), (0, 0)]
)
def test_memory_that_cannot_be_is_not_known(nvml_library: Path, machine: Path, total: int, free: int) -> None:
    card = StubGpu(CARD_A, total_bytes=total, free_bytes=free, processes={1: NOTHING, 2: GIB})
    nvml_stub.write_machine(machine, [card])
    (seen,) = ask(nvml_library, machine)["devices"]
    assert (seen["state"], seen["uuid"], seen["name"]) == ("memory_unknown", CARD_A, "StubCard")
    assert (seen["total_bytes"], seen["free_bytes"], seen["used_bytes"]) == (0, 0, 0)
    assert [one["used_bytes"] for one in seen["processes"]] == [None, GIB]


def test_functions_that_a_driver_lacks_hide_only_their_own_answers(tmp_path: Path, machine: Path) -> None:
    absent = [call for call in CALLS if "Mig" in call or "Index" in call or "Processes" in call]
    absent.remove("nvmlDeviceGetHandleByIndex_v2")
    library = nvml_stub.build(tmp_path, absent=[*absent, "nvmlErrorString", "nvmlDeviceGetMemoryInfo"])
    nvml_stub.write_machine(machine, [StubGpu(CARD_A, utilization_percent=40)])
    seen = ask(library, machine, CARD_A)
    assert (seen["state"], seen["devices"][0]["state"]) == ("ok", "memory_unknown")
    assert (seen["read"][0]["utilization"], seen["read"][0]["processes"]) == (0.4, [])


def test_a_card_in_mig_mode_is_replaced_by_its_instances(nvml_library: Path, machine: Path) -> None:
    migs = [StubMig(MIG_1, gpu=1), StubMig(MIG_2, gpu=1, free_bytes=GIB)]
    nvml_stub.write_machine(machine, [StubGpu(CARD_A), StubGpu(CARD_B)], migs=migs)
    seen = ask(nvml_library, machine, MIG_2)
    assert [(one["uuid"], one["index"]) for one in seen["devices"]] == [(CARD_A, 0), (MIG_1, 1), (MIG_2, 1)]
    assert (seen["read"][0]["free_bytes"], seen["read"][0]["index"]) == (GIB, 1)


def test_a_card_is_found_where_the_driver_cannot_find_by_uuid(nvml_library: Path, machine: Path) -> None:
    unable = StubAnswer("nvmlDeviceGetHandleByUUID", code=3)
    nvml_stub.write_machine(machine, [StubGpu(CARD_B), StubGpu(CARD_A, free_bytes=GIB)], [unable])
    (seen,) = ask(nvml_library, machine, CARD_A)["read"]
    assert (seen["state"], seen["free_bytes"], seen["index"]) == ("ok", GIB, 1)


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


@pytest.mark.parametrize(
    ("visible", "order", "devices", "seen"),
    [
        (None, None, SAME, (CARD_A, CARD_B)),
        (None, None, (), ()),
        ("1", None, SAME, (CARD_B,)),
        ("1, 0", None, SAME, (CARD_B, CARD_A)),
        ("GPU-b", None, SAME, (CARD_B,)),
        ("", None, SAME, ()),
        ("-1", None, SAME, ()),
        ("0", None, MIXED, None),
        (None, None, MIXED, None),
        ("0", "PCI_BUS_ID", MIXED, (CARD_A,)),
        ("0,0", None, SAME, None),
        ("0,7,1", None, SAME, None),
        ("1gpu", None, SAME, None),
        (MIG, None, SAME, None),
        ("0", None, (gpu(CARD_A, ""), gpu(CARD_B, "", 1)), None),
        (None, None, (gpu(MIG_1), gpu(MIG_2)), None),
    ],
)
def test_what_cuda_shows_is_told_only_where_it_is_certain(
    visible: str | None, order: str | None, devices: tuple[GpuInfo, ...], seen: tuple[str, ...] | None
) -> None:
    given = {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": order}
    environ = {name: value for name, value in given.items() if value is not None}
    assert visible_uuids(devices, environ) == seen
