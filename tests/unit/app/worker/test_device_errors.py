"""Errors of the device: the worker's classes agree with what the library calls an out-of-memory."""

import weakref

import pytest
import torch

from adaptive.device.out_of_memory import MemoryFailure, memory_failure
from app.worker.decoding import DeviceFault, OutOfMemory, translated_device_errors
from app.worker.job.failures import JobFailure, as_job_failures

NO_ENGINE = "GET was unable to find an engine to execute this computation"
CASES = (
    (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory, "out_of_memory"),
    (RuntimeError("CUDA driver error: out of memory"), OutOfMemory, "out_of_memory"),
    (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemory, "out_of_memory"),
    (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"), OutOfMemory, "out_of_memory"),
    (RuntimeError(NO_ENGINE), RuntimeError, "internal_error"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"), RuntimeError, "internal_error"),
)


@pytest.mark.parametrize(("error", "raised", "code"), CASES, ids=[str(error) for error, _, _ in CASES])
def test_only_a_certain_out_of_memory_is_reported_as_one(
    error: Exception, raised: type[Exception], code: str
) -> None:
    with pytest.raises(raised) as seen, translated_device_errors("denoising"):
        raise error
    assert isinstance(seen.value, OutOfMemory) is (memory_failure(error) is MemoryFailure.CERTAIN)
    with pytest.raises(JobFailure) as failed, as_job_failures(), translated_device_errors("denoising"):
        raise error
    assert failed.value.error.code == code


def test_a_fault_of_the_device_is_no_out_of_memory() -> None:
    fault = torch.AcceleratorError("CUDA error: device-side assert triggered")
    with pytest.raises(DeviceFault), translated_device_errors("decoding"):
        raise fault


def test_the_tensors_of_a_call_that_ran_out_of_memory_are_freed_before_it_is_told() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        tensor = torch.zeros(1)
        kept.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    try:
        with translated_device_errors("decoding"):
            work()
    except OutOfMemory:
        assert kept[0]() is None
    assert kept
