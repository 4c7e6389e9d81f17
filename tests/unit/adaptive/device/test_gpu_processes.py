"""Who holds a card's memory, through the real pynvml over the stub driver."""

import json
import subprocess
import sys
from pathlib import Path

import nvml_stub
import pytest

from adaptive.device.gpu_processes import GpuMemoryUser, gpu_memory_users
from adaptive.device.nvml import GpuInfo, GpuProcess, NvmlState

GIB = 2**30


def card(used_gib: int, processes: dict[int, int | None]) -> GpuInfo:
    listed = tuple(GpuProcess(pid, used and used * GIB) for pid, used in processes.items())
    return GpuInfo(
        "GPU-1", 0, "Card", 24 * GIB, (24 - used_gib) * GIB, used_gib * GIB, 0.0, listed, NvmlState.OK
    )


@pytest.mark.parametrize(
    ("gpu", "own", "expected"),
    [
        # ours as we say it (the context counts), theirs by name, and what nobody explains
        (
            card(12, {7: 4, 9: 6}),
            {7: 5},
            [(9, "game", 6, False), (7, "game", 5, True), (None, None, 1, False)],
        ),
        # in a container: no id of ours is known, so one of our size is us and the others have no names
        (card(11, {70: 5, 90: 6}), {7: 5}, [(90, None, 6, False), (7, "game", 5, True)]),
        # a driver that does not tell sizes (WSL)
        (
            card(10, {7: None, 9: None}),
            {7: 4},
            [(None, None, 6, False), (7, "game", 4, True), (9, "game", None, False)],
        ),
        (card(0, {}), {}, []),
    ],
)
def test_memory_is_attributed_to_us_to_others_or_to_no_process(
    gpu: GpuInfo, own: dict[int, int], expected: list[tuple[int | None, str | None, int | None, bool]]
) -> None:
    found = gpu_memory_users(gpu, {pid: used * GIB for pid, used in own.items()}, lambda _pid: "game")
    assert found == [
        GpuMemoryUser(pid, name, used and used * GIB, own=mine) for pid, name, used, mine in expected
    ]


LOOK = """
import json, os
from adaptive.device.gpu_processes import gpu_memory_users
from adaptive.device.nvml import Nvml
(gpu,) = Nvml().devices()
print(json.dumps([each.as_json() for each in gpu_memory_users(gpu, {os.getpid(): 0})]))
"""


def test_a_neighbour_is_named_by_the_driver_and_the_system(nvml_library: Path, tmp_path: Path) -> None:
    neighbour = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        machine = tmp_path / "machine"
        used = {neighbour.pid: 10 * GIB}
        nvml_stub.write_machine(machine, [nvml_stub.StubGpu(free_bytes=14 * GIB, processes=used)])
        env = nvml_stub.environment(nvml_library, machine)
        done = subprocess.run(
            [sys.executable, "-c", LOOK], capture_output=True, text=True, env=env, check=True
        )
    finally:
        neighbour.communicate(b"\n")
    first = json.loads(done.stdout)[0]
    assert (first["pid"], first["used_bytes"], first["own"]) == (neighbour.pid, 10 * GIB, False)
