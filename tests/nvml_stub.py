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


@dataclass(frozen=True)
class StubMig:
    """An instance of a card in MIG mode."""

    uuid: str = "MIG-00000000-0000-0000-0000-0000000000a1"
    gpu: int = 0
    name: str = "Slice"
    total_bytes: int = 10 * 2**30
    free_bytes: int = 9 * 2**30


@dataclass(frozen=True)
class StubAnswer:
    """What the driver answers to one of its calls, in place of what the rest of the machine says.

    `call` is the C function, such as nvmlDeviceGetMemoryInfo. `code` is NVML's error code, `text` the bytes
    of a text, `fill` a byte that fills the whole buffer without an end, `value` the number. `gpu` limits it
    to one card.
    """

    call: str
    code: int = 0
    text: bytes | None = None
    fill: int | None = None
    value: int | None = None
    gpu: int | None = None

    def line(self) -> str:
        """The line of the stub's file."""
        words = {
            "gpu": self.gpu,
            "code": self.code,
            "bytes": None if self.text is None else self.text.hex(),
            "fill": None if self.fill is None else f"{self.fill:02x}",
            "value": self.value,
        }
        told = [f"{key}={value}" for key, value in words.items() if value is not None]
        return " ".join(["answer", f"call={self.call}", *told])


def build(folder: Path, absent: Sequence[str] = ()) -> Path:
    """Compile `libnvidia-ml.so.1` into `folder` and return its path; `absent` functions are left out."""
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [
            "gcc",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Werror",
            "-Wl,-soname,libnvidia-ml.so.1",
            *(f"-D{function}=absent_{function}" for function in absent),
            "-o",
            library,
            SOURCE,
        ],
        check=True,
    )
    return library


def build_empty(library: Path) -> None:
    """Compile a library without functions: one that can be loaded, as `libcuda.so.1` beside a driver."""
    subprocess.run(["gcc", "-shared", "-o", library, "-x", "c", "/dev/null"], check=True)


def write_machine(
    path: Path, gpus: Sequence[StubGpu], answers: Sequence[StubAnswer] = (), migs: Sequence[StubMig] = ()
) -> None:
    """Describe the machine; atomic, because another process may read at any moment."""
    lines = []
    for index, gpu in enumerate(gpus):
        lines.append(
            f"gpu uuid={gpu.uuid} name={gpu.name} total={gpu.total_bytes} free={gpu.free_bytes} "
            f"util={gpu.utilization_percent} lost={int(gpu.lost)}"
        )
        lines += [f"process gpu={index} pid={pid} used={used}" for pid, used in gpu.processes.items()]
    lines += [
        f"mig gpu={mig.gpu} uuid={mig.uuid} name={mig.name} total={mig.total_bytes} free={mig.free_bytes}"
        for mig in migs
    ]
    lines += [answer.line() for answer in answers]
    draft = path.with_name(path.name + ".new")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(path)


def environment(library: Path, machine: Path) -> dict[str, str]:
    """Environment of a subprocess that finds the stub where it looks for the driver."""
    return {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "NVML_STUB_FILE": str(machine)}
