"""Which devices get a worker, and why a GPU gets none.

Owns the choice behind FRAMEFIT_DEVICES. The driver's answer decides where it is complete. Where it is not (a
card whose memory the driver does not report, cards of several models under CUDA_VISIBLE_DEVICES, no library
of the driver), the accelerator runtime is asked, which takes some seconds: every card that it can open is
used. Imports no torch; knows neither processes nor jobs.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adaptive.device.nvml import GpuInfo, Nvml, NvmlState
from adaptive.device.runtime import RuntimeAnswer, RuntimeDevice, ask_runtime, cuda_library_exists
from adaptive.device.visible_devices import visible_uuids
from app.config import ConfigError
from app.service.gpus.unused import UnusedGpu, UnusedReason, unreachable_cards

VISIBLE = "CUDA_VISIBLE_DEVICES"
NONE_VISIBLE = "No CUDA GPUs are available"  # torch's words where CUDA works and shows no device


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device that gets a worker.

    `identity` is its UUID where one is known. The worker uses torch's `device` under `environ`. With
    `falls_back` the CPU takes its place if torch cannot use it.
    """

    identity: str
    name: str
    device: str
    environ: Mapping[str, str] = field(default_factory=dict)
    falls_back: bool = False


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices with workers, and the GPUs without."""

    chosen: tuple[DeviceChoice, ...]
    unused: tuple[UnusedGpu, ...]


CPU = DeviceChoice("cpu", "CPU", "cpu")


def choose_devices(setting: str) -> Devices:
    """Return the devices for a value of FRAMEFIT_DEVICES.

    Raises `ConfigError` for a named device that neither the driver nor CUDA has.
    """
    with Nvml() as nvml:
        gpus = nvml.devices()
    names = [name.strip() for name in setting.split(",")]
    if names == ["auto"]:
        return _automatic(gpus)
    chosen = {choice.identity: choice for choice in (_named(name, gpus) for name in names)}
    left = [gpu for gpu in gpus if gpu.uuid not in chosen]
    return Devices(tuple(chosen.values()), tuple(_unused(gpu, UnusedReason.NOT_SELECTED) for gpu in left))


def _automatic(gpus: Sequence[GpuInfo]) -> Devices:
    if not gpus and not cuda_library_exists():
        return Devices((CPU,), unreachable_cards())
    if VISIBLE in os.environ:
        found = _by_visible_devices(gpus)
    elif any(gpu.is_mig for gpu in gpus):  # CUDA lists one instance a process: each has its own process
        found = _each_alone(gpus)
    elif gpus and all(_clear(gpu) for gpu in gpus):
        found = Devices(tuple(_by_uuid(gpu) for gpu in gpus), ())
    else:
        found = _by_runtime(gpus, ask_runtime())
    return found if found.chosen else Devices((CPU,), found.unused or unreachable_cards())


def _clear(gpu: GpuInfo) -> bool:
    return gpu.state is NvmlState.OK and bool(gpu.uuid)


def _by_visible_devices(gpus: Sequence[GpuInfo]) -> Devices:
    visible = visible_uuids(gpus) if all(_clear(gpu) for gpu in gpus) else None
    if visible is None or not gpus:
        return _by_runtime(gpus, ask_runtime())
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    hidden = [gpu for gpu in gpus if gpu.uuid not in visible]
    return Devices(
        tuple(_by_uuid(by_uuid[uuid]) for uuid in visible),
        tuple(_unused(gpu, UnusedReason.HIDDEN) for gpu in hidden),
    )


def _each_alone(gpus: Sequence[GpuInfo]) -> Devices:
    chosen, unused = [], []
    for gpu in gpus:
        if _clear(gpu):
            chosen.append(_by_uuid(gpu))
        elif not gpu.uuid:
            unused.append(_unused(gpu, _reason(gpu), f"the driver reports {gpu.state} and no UUID"))
        else:
            alone = _by_runtime([gpu], ask_runtime(gpu.uuid), {VISIBLE: gpu.uuid})
            chosen += alone.chosen
            unused += alone.unused
    return Devices(tuple(chosen), tuple(unused))


def _by_runtime(
    gpus: Sequence[GpuInfo], answer: RuntimeAnswer, environ: Mapping[str, str] | None = None
) -> Devices:
    """Choose every device that the runtime opens.

    `environ` selects the only device of the answer; by default each gets its part of the user's own variable.
    """
    if answer.error is not None and not answer.devices:
        return _without_runtime(gpus, answer)
    pairs, left = _matched(gpus, answer.devices)
    chosen, unused = [], []
    for device, gpu in pairs:
        if device.opens:
            chosen.append(_by_ordinal(device, gpu, environ))
        else:
            unused.append(_unused(gpu or device, UnusedReason.CANNOT_OPEN, device.error or ""))
    for gpu in left:
        hidden = VISIBLE in os.environ and gpu.state is not NvmlState.GPU_LOST
        reason = UnusedReason.HIDDEN if hidden else _reason(gpu)
        unused.append(_unused(gpu, reason, "CUDA does not list it"))
    return Devices(tuple(chosen), tuple(unused))


def _without_runtime(gpus: Sequence[GpuInfo], answer: RuntimeAnswer) -> Devices:
    """Choose without an answer of CUDA: a card that the driver describes in full may still work alone.

    Such a card is tried, because another card can keep CUDA from starting while all are visible.
    """
    if answer.answered and answer.cuda_build is None:
        chosen: list[GpuInfo] = []
        reason = UnusedReason.NO_CUDA_BUILD
    else:
        chosen = [gpu for gpu in gpus if _clear(gpu) and VISIBLE not in os.environ]
        none_visible = VISIBLE in os.environ and NONE_VISIBLE in (answer.error or "")
        reason = UnusedReason.HIDDEN if none_visible else UnusedReason.CANNOT_OPEN
    left = [gpu for gpu in gpus if gpu not in chosen]
    unused = [_unused(gpu, _reason(gpu, reason), answer.error or "") for gpu in left]
    return Devices(tuple(_by_uuid(gpu) for gpu in chosen), tuple(unused))


def _matched(
    gpus: Sequence[GpuInfo], devices: Sequence[RuntimeDevice]
) -> tuple[list[tuple[RuntimeDevice, GpuInfo | None]], list[GpuInfo]]:
    """Pair CUDA's devices with the driver's GPUs, by UUID and, where the rest is of one number, in order.

    Returns the pairs, and the GPUs that CUDA does not list.
    """
    by_uuid = {gpu.uuid.partition("-")[2]: gpu for gpu in gpus if gpu.uuid}
    pairs = [(device, by_uuid.get(device.uuid)) for device in devices]
    left = [gpu for gpu in gpus if not any(gpu is match for _, match in pairs)]
    nameless = [gpu for gpu in left if not gpu.uuid and gpu.state is not NvmlState.GPU_LOST]
    alone = sum(match is None for _, match in pairs)
    in_order = iter(left if len(left) == alone else nameless)
    pairs = [(device, match or next(in_order, None)) for device, match in pairs]
    return pairs, [gpu for gpu in left if not any(gpu is match for _, match in pairs)]


def _named(name: str, gpus: Sequence[GpuInfo]) -> DeviceChoice:
    if name == "cpu":
        return CPU
    if name.startswith("cuda:") and name[5:].isdecimal():
        return _numbered(int(name[5:]), gpus)
    matches = [gpu for gpu in gpus if gpu.uuid.startswith(name)] if name else []
    if len(matches) == 1 and _clear(matches[0]):
        return _by_uuid(matches[0], falls_back=False)
    uuid = matches[0].uuid if len(matches) == 1 else name
    if len(matches) > 1 or not uuid.startswith(("GPU-", "MIG-")):
        raise _no_such_device(name, gpus)
    answer = ask_runtime(uuid)
    if len([device for device in answer.devices if device.opens]) != 1 and answer.answered:
        raise _no_such_device(name, gpus, answer)
    return DeviceChoice(uuid, matches[0].name if matches else "", "cuda:0", {VISIBLE: uuid})


def _numbered(ordinal: int, gpus: Sequence[GpuInfo]) -> DeviceChoice:
    """The device that CUDA calls `cuda:<ordinal>`, under the user's own variables."""
    clear = bool(gpus) and all(_clear(gpu) for gpu in gpus)
    visible = visible_uuids(gpus) if clear else None
    if visible is not None and ordinal < len(visible):
        return _by_uuid(next(gpu for gpu in gpus if gpu.uuid == visible[ordinal]), falls_back=False)
    if visible is not None or (not gpus and not cuda_library_exists()):
        raise _no_such_device(f"cuda:{ordinal}", gpus)
    answer = ask_runtime()
    if not answer.answered:  # named by the user: its worker tries, and reports the failure
        return DeviceChoice(f"cuda:{ordinal}", "", f"cuda:{ordinal}")
    pairs, _ = _matched(gpus, answer.devices)
    found = next(((device, gpu) for device, gpu in pairs if device.ordinal == ordinal and device.opens), None)
    if found is None:
        raise _no_such_device(f"cuda:{ordinal}", gpus, answer)
    return _by_ordinal(*found, falls_back=False)


def _by_uuid(gpu: GpuInfo, *, falls_back: bool = True) -> DeviceChoice:
    return DeviceChoice(gpu.uuid, gpu.name, "cuda:0", {VISIBLE: gpu.uuid}, falls_back)


def _by_ordinal(
    device: RuntimeDevice,
    gpu: GpuInfo | None,
    environ: Mapping[str, str] | None = None,
    *,
    falls_back: bool = True,
) -> DeviceChoice:
    """A device as CUDA counts it: CUDA then resolves the same entry of the variable as in its answer."""
    if gpu is not None and _clear(gpu) and gpu.uuid.endswith(device.uuid):
        return _by_uuid(gpu, falls_back=falls_back)
    entries = os.environ[VISIBLE].split(",") if VISIBLE in os.environ else []
    entry = entries[device.ordinal].strip() if device.ordinal < len(entries) else str(device.ordinal)
    known = (gpu.uuid if gpu else "") or (f"GPU-{device.uuid}" if device.uuid else f"cuda:{device.ordinal}")
    name = (gpu.name if gpu else "") or device.name
    return DeviceChoice(known, name, "cuda:0", environ or {VISIBLE: entry}, falls_back)


def _reason(gpu: GpuInfo, otherwise: UnusedReason = UnusedReason.CANNOT_OPEN) -> UnusedReason:
    return UnusedReason.GPU_LOST if gpu.state is NvmlState.GPU_LOST else otherwise


def _unused(gpu: GpuInfo | RuntimeDevice, reason: UnusedReason, detail: str = "") -> UnusedGpu:
    return UnusedGpu(gpu.uuid, gpu.name, reason, detail)


def _no_such_device(name: str, gpus: Sequence[GpuInfo], answer: RuntimeAnswer | None = None) -> ConfigError:
    known = ", ".join(gpu.uuid or gpu.state for gpu in gpus) or "none"
    text = f"FRAMEFIT_DEVICES: no such device: {name}; the driver reports {known}"
    if answer is not None:
        faults = [device.error for device in answer.devices if device.error is not None]
        shown = f"{len(answer.devices)} device(s)" if answer.error is None else answer.error
        text += f"; CUDA: {'; '.join([shown, *faults])}"
    return ConfigError(text)
