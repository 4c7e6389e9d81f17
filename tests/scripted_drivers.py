"""Drivers whose answers are odd but real, and what the parts of the service make of each.

`DRIVERS` is the table. A driver is a stub NVML (`nvml_stub`), a scripted runtime (`tests/stub/runtime`) and
the user's variables. `observe` asks the service's parts about each driver, with the real `pynvml` in a
process of its own, and returns what they say. Run as a program, this file is that process.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nvml_stub
from nvml_stub import StubAnswer, StubGpu, StubMig

RUNTIME = Path(__file__).parent / "stub" / "runtime"
GIB = 2**30
A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
B = "GPU-bbbbbbbb-0000-0000-0000-000000000002"
MIG_1 = "MIG-11111111-0000-0000-0000-0000000000a1"
MIG_2 = "MIG-22222222-0000-0000-0000-0000000000a2"
NOT_UTF8 = b"\xf8\x95\xa0\x81"  # the name that the driver 555.85 gives under WSL
NOTHING = 2**64 - 1  # "not available" of some drivers, in a field of 64 bits
TWO_UNLIKE = (StubGpu(A, "GTX1060", 6 * GIB, 6 * GIB), StubGpu(B, "RTX3090", 24 * GIB, 23 * GIB))


@dataclass(frozen=True)
class Card:
    """A card as CUDA has it. `opens`: whether a process can use it."""

    name: str
    uuid: str
    bus: int = 0
    opens: bool = True
    instances: tuple[StubMig, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The card of the runtime's script."""
        instances = [
            {"uuid": one.uuid, "name": one.name, "total": one.total_bytes, "free": one.free_bytes}
            for one in self.instances
        ]
        return {
            "uuid": self.uuid,
            "name": self.name,
            "total": 24 * GIB,
            "free": 20 * GIB,
            "bus": self.bus,
            "error": None if self.opens else "CUDA-capable device(s) is/are busy or unavailable",
            "instances": instances,
        }


@dataclass(frozen=True)
class Driver:
    """A machine, and what must come of it.

    `auto`, `first` and `by_uuid` are the names of the cards that the workers of FRAMEFIT_DEVICES=auto, cuda:0
    and `uuid` open; empty: the CPU for `auto`, a refusal for the others. `unused`: why cards are left out.
    """

    what: str
    gpus: tuple[StubGpu, ...]
    cards: tuple[Card, ...]
    auto: tuple[str, ...]
    first: str = ""
    by_uuid: str = ""
    uuid: str = A
    answers: tuple[StubAnswer, ...] = ()
    migs: tuple[StubMig, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    cuda: str | None = "13.0"
    error: str | None = None
    unused: tuple[str, ...] = ()

    def write(self, machine: Path, runtime: Path) -> None:
        """Write the files of the stubs."""
        nvml_stub.write_machine(machine, self.gpus, self.answers, self.migs)
        script = {
            "cuda": self.cuda,
            "error": self.error,
            "cards": [card.as_json() for card in self.cards],
        }
        runtime.write_text(json.dumps(script))


def _one(what: str, *answers: StubAnswer, gpu: StubGpu | None = None, **more: Any) -> Driver:
    """One card that works, on a driver with these answers."""
    gpus = (gpu or StubGpu(A, "Card", 24 * GIB, 20 * GIB),)
    expected: dict[str, Any] = {"auto": ("Card",), "first": "Card", "by_uuid": "Card", **more}
    return Driver(what, gpus, (Card("Card", A),), answers=answers, **expected)


def _unlike(what: str, environ: Mapping[str, str], auto: tuple[str, ...], **more: Any) -> Driver:
    """Two cards of two models: the bus has the GTX1060 first, CUDA's own order the RTX3090."""
    cards = (Card("RTX3090", B, bus=1), Card("GTX1060", A, bus=0))
    return Driver(what, TWO_UNLIKE, cards, auto, by_uuid="GTX1060", environ=environ, **more)


SLICES = (StubMig(MIG_1, name="Slice-1"), StubMig(MIG_2, name="Slice-2"))
MIG_CARD = (StubGpu(A, "Card", 80 * GIB, 70 * GIB),)

DRIVERS = (
    _one("memory is not supported (GB10, Jetson)", StubAnswer("nvmlDeviceGetMemoryInfo", code=3)),
    _one("memory is no function of this driver", StubAnswer("nvmlDeviceGetMemoryInfo", code=13)),
    _one("memory is 2^64-1 bytes", gpu=StubGpu(A, "Card", NOTHING, NOTHING)),
    _one("more memory is free than there is", gpu=StubGpu(A, "Card", 24 * GIB, 25 * GIB)),
    _one("memory is zero bytes", gpu=StubGpu(A, "Card", 0, 0)),
    _one(
        "name and version are not UTF-8 (WSL)",
        StubAnswer("nvmlDeviceGetName", text=NOT_UTF8),
        StubAnswer("nvmlSystemGetDriverVersion", text=NOT_UTF8),
        StubAnswer("nvmlErrorString", text=NOT_UTF8),
    ),
    _one("name has no end", StubAnswer("nvmlDeviceGetName", fill=0x41)),
    _one("UUID is not UTF-8", StubAnswer("nvmlDeviceGetUUID", text=NOT_UTF8)),
    _one("UUID has no end", StubAnswer("nvmlDeviceGetUUID", fill=0xFF)),
    _one("UUID is not permitted", StubAnswer("nvmlDeviceGetUUID", code=4)),
    _one("the library does not start", StubAnswer("nvmlInitWithFlags", code=999)),
    _one("the library finds no driver", StubAnswer("nvmlInitWithFlags", code=9)),
    _one("the number of cards is absurd", StubAnswer("nvmlDeviceGetCount_v2", value=2**32 - 1)),
    _one("the number of cards is zero", StubAnswer("nvmlDeviceGetCount_v2", value=0)),
    _one("the number of cards fails", StubAnswer("nvmlDeviceGetCount_v2", code=10)),
    _one("the card may not be looked at", StubAnswer("nvmlDeviceGetHandleByIndex_v2", code=4)),
    _one("no card is found by UUID", StubAnswer("nvmlDeviceGetHandleByUUID", code=13)),
    _one(
        "everything beside the memory fails",
        *(
            StubAnswer(call, code=13)
            for call in (
                "nvmlDeviceGetName",
                "nvmlDeviceGetIndex",
                "nvmlDeviceGetUtilizationRates",
                "nvmlDeviceGetComputeRunningProcesses_v3",
                "nvmlDeviceGetMigMode",
                "nvmlSystemGetDriverVersion",
                "nvmlSystemGetCudaDriverVersion",
                "nvmlShutdown",
            )
        ),
    ),
    _one(
        "numbers beside the memory are absurd",
        StubAnswer("nvmlDeviceGetIndex", value=2**32 - 1),
        StubAnswer("nvmlDeviceGetUtilizationRates", value=2**32 - 1),
        StubAnswer("nvmlDeviceGetComputeRunningProcesses_v3", value=2**32 - 1),
        StubAnswer("nvmlDeviceGetMigMode", value=2**32 - 1),
        StubAnswer("nvmlSystemGetCudaDriverVersion", value=2**31 - 1),
    ),
    Driver(
        "the card of a MIG instance is not permitted, and MIG cannot be asked for",
        MIG_CARD,
        (Card("Card", A, instances=SLICES[:1]),),
        auto=("Slice-1",),
        first="Slice-1",
        by_uuid="Slice-1",
        uuid=MIG_1,
        answers=(StubAnswer("nvmlDeviceGetMemoryInfo", code=4), StubAnswer("nvmlDeviceGetMigMode", code=4)),
    ),
    Driver(
        "two MIG instances of one card",
        MIG_CARD,
        (Card("Card", A, instances=SLICES),),
        auto=("Slice-1", "Slice-2"),
        first="Slice-1",
        by_uuid="Slice-2",
        uuid=MIG_2,
        migs=SLICES,
    ),
    Driver(
        "two MIG instances whose memory is not permitted",
        MIG_CARD,
        (Card("Card", A, instances=SLICES),),
        auto=("Slice-1", "Slice-2"),
        first="Slice-1",
        by_uuid="Slice-2",
        uuid=MIG_2,
        migs=SLICES,
        answers=(StubAnswer("nvmlDeviceGetMemoryInfo", code=4),),
    ),
    _unlike("two unlike cards", {}, ("GTX1060", "RTX3090"), first="RTX3090"),
    _unlike(
        "two unlike cards, 0 visible",
        {"CUDA_VISIBLE_DEVICES": "0"},
        ("RTX3090",),
        first="RTX3090",
        unused=("hidden",),
    ),
    _unlike(
        "two unlike cards, 1 visible",
        {"CUDA_VISIBLE_DEVICES": "1"},
        ("GTX1060",),
        first="GTX1060",
        unused=("hidden",),
    ),
    _unlike(
        "two unlike cards, both visible",
        {"CUDA_VISIBLE_DEVICES": "1,0"},
        ("GTX1060", "RTX3090"),
        first="GTX1060",
    ),
    _unlike(
        "two unlike cards in bus order",
        {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        ("GTX1060",),
        first="GTX1060",
        unused=("hidden",),
    ),
    _unlike(
        "two unlike cards, a prefix visible",
        {"CUDA_VISIBLE_DEVICES": "GPU-b"},
        ("RTX3090",),
        first="RTX3090",
        unused=("hidden",),
    ),
    _unlike("a card named twice is none", {"CUDA_VISIBLE_DEVICES": "0,0"}, (), unused=("hidden", "hidden")),
    _unlike("no card visible", {"CUDA_VISIBLE_DEVICES": ""}, (), unused=("hidden", "hidden")),
    Driver(
        "a lost card beside one without memory",
        (StubGpu(B, "Lost", lost=True), StubGpu(A, "Card", 24 * GIB, 20 * GIB)),
        (Card("Card", A),),
        auto=("Card",),
        first="Card",
        by_uuid="Card",
        answers=(StubAnswer("nvmlDeviceGetMemoryInfo", code=3, gpu=1),),
        unused=("gpu_lost",),
    ),
    Driver(
        "one of two cards cannot be opened",
        (StubGpu(A, "Card", 24 * GIB, 20 * GIB), StubGpu(B, "Busy", 24 * GIB, 20 * GIB)),
        (Card("Card", A), Card("Busy", B, opens=False)),
        auto=("Card",),
        first="Card",
        by_uuid="Card",
        answers=(StubAnswer("nvmlDeviceGetMemoryInfo", code=3),),
        unused=("cannot_open",),
    ),
    _one(
        "CUDA does not start",
        StubAnswer("nvmlDeviceGetMemoryInfo", code=3),
        error="CUDA driver version is insufficient for CUDA runtime version",
        auto=(),
        first="",
        by_uuid="",
        unused=("cannot_open",),
    ),
    _one(
        "torch has no CUDA",
        StubAnswer("nvmlDeviceGetMemoryInfo", code=3),
        cuda=None,
        auto=(),
        first="",
        by_uuid="",
        unused=("no_cuda_build",),
    ),
)


def observe(folder: Path, library: Path) -> dict[str, dict[str, Any]]:
    """What the service's parts say, by driver: `auto`, `cuda:0`, `uuid` (the cards that workers open, or the
    refusal), `doctor`, `devices` (the body of GET /devices), `unused` (the reasons
    why `auto` leaves cards out); or `traceback`.
    """
    for number, driver in enumerate(DRIVERS):
        driver.write(folder / f"{number}.machine", folder / f"{number}.runtime")
    environ = nvml_stub.environment(library, folder / "0.machine")
    path = os.pathsep.join([str(RUNTIME), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env={**environ, "PYTHONPATH": path, "SCRIPTED_RUNTIME": str(folder / "0.runtime")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return {driver.what: json.loads(done.stdout.splitlines()[n]) for n, driver in enumerate(DRIVERS)}


def _opened(chosen: Sequence[Any]) -> list[str]:
    """The names of the cards that workers would open, as the scripted runtime resolves their variables."""
    import torch

    names, own = [], dict(os.environ)
    for choice in chosen:
        if choice.device != "cpu":
            os.environ.update(choice.environ)
            names.append(str(torch._opened(int(choice.device[5:]))["name"]))  # type: ignore[attr-defined]
            os.environ.clear()
            os.environ.update(own)
    return sorted(names)


def _say(driver: Driver, folder: Path) -> dict[str, Any]:
    """One driver, in a process that was forked for it: the stub's library is loaded here."""
    from starlette.testclient import TestClient

    from app.api import create_app
    from app.config import ConfigError, Settings
    from app.doctor import machine
    from app.service.gpus.devices import choose_devices

    said: dict[str, Any] = {}
    for name in ("auto", "cuda:0", driver.uuid):
        key = "uuid" if name == driver.uuid else name
        try:
            said[key] = _opened(choose_devices(name).chosen)
        except ConfigError as error:
            said[key] = str(error)
    said["unused"] = sorted(gpu.reason for gpu in choose_devices("auto").unused)
    settings = Settings(data_dir=folder)
    said["doctor"] = [one.as_json() for one in (*machine.devices(settings), machine.torch_build())]
    answer = TestClient(create_app(settings)).get("/devices")
    said["devices"] = answer.json() if answer.status_code == 200 else answer.text
    return said


def main() -> None:
    """Fork a process for each driver: a process loads a driver's library once and for all."""
    import app.api
    import app.doctor.machine  # noqa: F401
    from app.config import Settings
    from app.store import open_store

    folder = Path(sys.argv[1])
    store = open_store(Settings(data_dir=folder))
    store.migrate()
    store.close()
    for number, driver in enumerate(DRIVERS):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.environ.update(driver.environ)
            os.environ["NVML_STUB_FILE"] = str(folder / f"{number}.machine")
            os.environ["SCRIPTED_RUNTIME"] = str(folder / f"{number}.runtime")
            try:
                said = _say(driver, folder)
            except BaseException:
                said = {"traceback": traceback.format_exc()}
            with os.fdopen(writer, "w") as pipe:
                json.dump(said, pipe)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            sys.stdout.write(pipe.read() + "\n")
        os.wait()


if __name__ == "__main__":
    main()
