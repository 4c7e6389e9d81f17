"""Which GPUs CUDA shows to a process, as far as that can be told without CUDA.

Owns the rules of CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER. Where they do not decide, the answer is "not
known": `adaptive.device.runtime` then asks CUDA itself.
"""

import os
from collections.abc import Mapping, Sequence

from adaptive.device.nvml import GpuInfo, Nvml


def cuda_visible_uuid(
    ordinal: int,
    *,
    devices: Sequence[GpuInfo] | None = None,
    environ: Mapping[str, str] | None = None,
) -> str | None:
    """UUID of the device that CUDA calls `cuda:<ordinal>`.

    None where CUDA sees no such device, or where its order of devices is not known.

    Follows the CUDA C programming guide, "CUDA Environment Variables". Entries of CUDA_VISIBLE_DEVICES are
    indices, GPU UUIDs or unambiguous prefixes of them, or MIG UUIDs (returned unchanged). The first invalid
    entry hides all that follow. Indices count in bus order only under CUDA_DEVICE_ORDER=PCI_BUS_ID. CUDA's
    default order is fastest first: it equals bus order where all cards are of one model, and is not known
    here where they differ, where a name is unknown, or where a card is in MIG mode.
    """
    env = os.environ if environ is None else environ
    if devices is None:
        with Nvml() as nvml:
            devices = nvml.devices()
    visible = _visible(devices, env)
    return visible[ordinal] if 0 <= ordinal < len(visible) else None


def visible_uuids(
    devices: Sequence[GpuInfo], environ: Mapping[str, str] | None = None
) -> tuple[str, ...] | None:
    """UUIDs of all devices that CUDA shows, in its order; None where only CUDA itself can tell.

    CUDA shows nothing if the variable names a device twice, and accepts other forms than those known here.
    """
    env = os.environ if environ is None else environ
    entries = _entries(devices, env)
    if entries in ([""], ["-1"]):
        return ()
    found = tuple(uuid for uuid in _visible(devices, env) if uuid is not None)
    each_once = len(entries) == len(found) == len(set(found))
    known_forms = all(entry.isdecimal() or entry.startswith(("GPU-", "MIG-")) for entry in entries)
    on_this_machine = {device.uuid for device in devices}.issuperset(found)
    return found if each_once and known_forms and on_this_machine else None


def _entries(devices: Sequence[GpuInfo], environ: Mapping[str, str]) -> list[str]:
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(index) for index in range(len(devices))]
    return [entry.strip() for entry in listed.split(",")]


def _visible(devices: Sequence[GpuInfo], environ: Mapping[str, str]) -> list[str | None]:
    bus_order = environ.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST") == "PCI_BUS_ID"
    one_model = len({device.name for device in devices}) <= 1 and all(device.name for device in devices)
    whole_cards = not any(device.is_mig for device in devices)
    order_known = whole_cards and (bus_order or one_model or len(devices) == 1)
    visible: list[str | None] = []
    for entry in _entries(devices, environ):
        valid, uuid = _resolve(entry, devices, order_known)
        if not valid:
            break
        visible.append(uuid)
    return visible


def _resolve(entry: str, devices: Sequence[GpuInfo], order_known: bool) -> tuple[bool, str | None]:
    """Whether CUDA accepts an entry, and the UUID it means (None where the card is not known)."""
    if entry.startswith("MIG-"):
        return True, entry
    if entry.isdecimal():
        index = int(entry)
        if index >= len(devices):
            return False, None
        return True, devices[index].uuid or None if order_known else None
    matches = [device.uuid for device in devices if device.uuid.startswith(entry)] if entry else []
    return (True, matches[0]) if len(matches) == 1 else (False, None)
