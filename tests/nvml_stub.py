"""The stub NVIDIA driver of the tests: built by gcc, loaded by the real `pynvml`, its machine described in a
text file.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parent / "stub" / "nvml_stub.c"


@dataclass(frozen=True)
class StubGpu:
    uuid: str = "GPU-00000000-0000-0000-0000-000000000001"
    name: str = "StubCard"
    total_bytes: int = 24 * 2**30
    free_bytes: int = 24 * 2**30
    utilization_percent: int = 0
    lost: bool = False
    processes: dict[int, int] = field(default_factory=dict)  # pid -> bytes


def build(folder: Path) -> Path:
    """Compile `libnvidia-ml.so.1` into `folder` and return its path."""
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [
            "gcc",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Werror",
            "-Wl,-soname,libnvidia-ml.so.1",
            "-o",
            library,
            SOURCE,
        ],
        check=True,
    )
    return library


def write_machine(path: Path, gpus: Sequence[StubGpu]) -> None:
    """Describe the machine; atomic, because another process may read at any moment."""
    lines = []
    for index, gpu in enumerate(gpus):
        lines.append(
            f"gpu uuid={gpu.uuid} name={gpu.name} total={gpu.total_bytes} free={gpu.free_bytes} "
            f"util={gpu.utilization_percent} lost={int(gpu.lost)}"
        )
        lines += [f"process gpu={index} pid={pid} used={used}" for pid, used in gpu.processes.items()]
    draft = path.with_name(path.name + ".new")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(path)


def environment(library: Path, machine: Path) -> dict[str, str]:
    """Environment of a subprocess that finds the stub where it looks for the driver."""
    return {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "NVML_STUB_FILE": str(machine)}
