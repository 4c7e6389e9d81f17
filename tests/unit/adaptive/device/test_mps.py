"""Apple's GPU shares the host's memory; torch tells what it holds and what Metal recommends. No Mac is at
hand: the functions of `torch.mps` are given.
"""

import pytest
import torch

from adaptive.device import probe
from adaptive.device.probe import MpsProbe, open_probe
from adaptive.types import MemoryReading

GIB = 2**30


@pytest.mark.parametrize(
    ("host_free", "expected_free"),
    [
        pytest.param(30 * GIB, 14 * GIB + GIB, id="metal-limits"),
        pytest.param(5 * GIB, 5 * GIB + GIB, id="host-limits"),
    ],
)
def test_free_memory_is_under_the_limits_of_metal_and_of_the_host(
    monkeypatch: pytest.MonkeyPatch, host_free: int, expected_free: int
) -> None:
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 * GIB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: GIB)
    host = MemoryReading("cpu", host_free, 64 * GIB, 0, GIB, 3 * GIB, "host")
    monkeypatch.setattr(probe, "read_host", lambda: host)
    opened = open_probe("mps")
    assert isinstance(opened, MpsProbe)
    reading = opened.read()
    assert (reading.free_bytes, reading.reusable_bytes, reading.own_bytes) == (expected_free, GIB, 2 * GIB)
    assert opened.peak() is None
