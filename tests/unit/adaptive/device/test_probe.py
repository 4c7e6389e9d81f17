"""Live memory of this host, and what counts as running out of it."""

import subprocess
import sys

import pytest
import torch

from adaptive.device.out_of_memory import is_out_of_memory
from adaptive.device.probe import CpuProbe, open_probe
from adaptive.errors import NoDevice

MIB = 2**20


def test_the_cpu_reading_is_within_the_machine() -> None:
    reading = open_probe("cpu").read()
    assert 0 < reading.free_bytes <= reading.total_bytes
    assert reading.own_bytes > 50 * MIB  # torch alone
    assert (reading.device, reading.source) == ("cpu", "host")


def test_the_peak_is_what_was_touched_since_the_reset_even_after_it_is_gone() -> None:
    probe = CpuProbe()
    probe.release()
    probe.reset_peak()
    touched = torch.ones(64 * MIB // 4)
    del touched
    grown = probe.peak()
    assert grown is not None
    assert 60 * MIB <= grown.allocated_bytes <= 80 * MIB
    assert grown.outside_bytes < 8 * MIB
    probe.release()
    probe.reset_peak()
    again = probe.peak()
    assert again is not None
    assert again.total_bytes < 10 * MIB


def test_an_address_space_limit_is_all_the_memory_there_is() -> None:
    script = (
        "import psutil, resource\n"
        "from adaptive.device.host import read_host\n"
        "used = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20, used + 300 * 2**20))\n"
        "reading = read_host()\n"
        "assert 250 * 2**20 < reading.free_bytes <= 300 * 2**20, reading\n"
        "assert reading.total_bytes == used + 300 * 2**20, reading\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("device", ["cuda:7", "mps"])
def test_a_device_that_torch_does_not_have_is_refused(device: str) -> None:
    with pytest.raises(NoDevice, match=device):
        open_probe(device)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("Given groups=1, expected channels"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_failed_allocations_are_distinguished_from_other_errors(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_real_failed_allocation_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**60)
    assert is_out_of_memory(failed.value)


def test_memory_that_others_keep_in_the_process_is_not_counted_for_the_decode() -> None:
    probe = CpuProbe()
    probe.release()
    probe.reset_peak()
    neighbour = torch.ones(96 * MIB // 4)  # as a video encoder keeps frames
    touched = torch.ones(64 * MIB // 4)
    result = touched[:MIB].clone()
    del touched
    grown = probe.peak(held_bytes=result.nbytes)
    assert grown is not None
    assert 56 * MIB <= grown.allocated_bytes <= 80 * MIB
    assert 88 * MIB <= grown.outside_bytes <= 104 * MIB
    assert neighbour.nbytes == 96 * MIB
