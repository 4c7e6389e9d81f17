"""The UUID by which a worker finds its card in the driver's data, whatever CUDA and the driver tell of it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adaptive.device.nvml import GpuInfo, Nvml, NvmlState
from adaptive.device.probe import device_name, device_uuid

GPU = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
MIG = "MIG-11111111-0000-0000-0000-0000000000a1"
OTHER = "GPU-bbbbbbbb-0000-0000-0000-000000000002"


class Driver(Nvml):
    """A driver that knows these UUIDs, with a card in the state that is given."""

    def __init__(self, *uuids: str, state: NvmlState = NvmlState.OK) -> None:
        super().__init__()
        self._known = [GpuInfo(uuid, 0, "Card", 0, 0, 0, None, (), state) for uuid in uuids]

    def devices(self) -> tuple[GpuInfo, ...]:
        return tuple(self._known)

    def read(self, uuid: str) -> GpuInfo:
        unknown = GpuInfo(uuid, -1, "", 0, 0, 0, None, (), NvmlState.NOT_FOUND)
        return next((gpu for gpu in self._known if gpu.uuid == uuid), unknown)


class Unreadable:
    """Properties of a device whose text is not UTF-8."""

    @property
    def uuid(self) -> str:
        return b"\xf8\x95".decode()


@pytest.mark.parametrize(
    ("told", "visible", "driver", "uuid"),
    [
        (SimpleNamespace(uuid=GPU[4:]), None, Driver(GPU), GPU),
        (SimpleNamespace(uuid=GPU[4:]), None, Driver(GPU, state=NvmlState.MEMORY_UNKNOWN), GPU),
        (SimpleNamespace(uuid=GPU), "1", Driver(OTHER, GPU), GPU),
        (SimpleNamespace(uuid=MIG[4:]), None, Driver(MIG), MIG),
        (SimpleNamespace(uuid=GPU[4:]), MIG, Driver(GPU), MIG),  # CUDA tells the card of the instance
        (SimpleNamespace(uuid=GPU[4:]), None, Driver(), GPU),  # no driver to ask
        (SimpleNamespace(), OTHER, Driver(GPU, OTHER), OTHER),
        (Unreadable(), None, Driver(GPU), GPU),
        (Unreadable(), None, Driver(), None),
    ],
)
def test_a_device_has_the_uuid_that_the_driver_knows(
    monkeypatch: pytest.MonkeyPatch, told: Any, visible: str | None, driver: Driver, uuid: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _ordinal: told)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_uuid(0, driver) == uuid


def test_costs_of_a_card_without_a_readable_name_are_kept_by_its_capability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: b"\xf8\x95".decode())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert device_name(torch.device("cuda:0")) == "cuda sm_90"
    assert device_name(torch.device("cpu")) == "cpu"
