"""Which exceptions are a failed allocation, certainly or possibly. Texts are as torch and its libraries give
them."""

from collections.abc import Callable

import pytest
import torch

from adaptive.device.out_of_memory import MemoryFailure, is_out_of_memory, memory_failure, release_frames

CERTAIN, POSSIBLE = MemoryFailure.CERTAIN, MemoryFailure.POSSIBLE


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA driver error: out of memory", CERTAIN),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", CERTAIN),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", CERTAIN),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", CERTAIN),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", CERTAIN),
        ("HIP out of memory. Tried to allocate 16.00 MiB", CERTAIN),
        ("HIP error: out of memory", CERTAIN),
        ("miopenStatusAllocFailed", CERTAIN),
        ("MIOpen Error: handlehip.cpp:70: Memory not available to allocate buffer: 655360000", CERTAIN),
        ("MPS backend out of memory (MPS allocated: 17.21 GiB, max allowed: 20.13 GiB)", CERTAIN),
        ("XPU out of memory. Tried to allocate 59.61 GiB", CERTAIN),
        ("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", CERTAIN),
        ("Unable to find a valid cuDNN algorithm to run convolution", POSSIBLE),
        ("GET was unable to find an engine to execute this computation", POSSIBLE),
        ("FIND was unable to find an engine to execute this computation", POSSIBLE),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", POSSIBLE),
        ("UR backend failed. UR backend returns:40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)", POSSIBLE),
        ("could not create a primitive descriptor for a convolution forward propagation primitive", POSSIBLE),
        ("could not create a primitive", CERTAIN),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", None),
        ("CUDA error: device-side assert triggered", None),
        ("Input type (double) and bias type (float) should be the same", None),
    ],
)
def test_messages_of_libraries_are_told_by_what_they_surely_mean(
    message: str, expected: MemoryFailure | None
) -> None:
    assert memory_failure(RuntimeError(message)) is expected
    assert is_out_of_memory(RuntimeError(message)) is (expected is CERTAIN)


def caught(work: Callable[[], None]) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


def allocate() -> None:
    torch.empty(2**60)


def wrapping() -> None:
    try:
        allocate()
    except RuntimeError as error:
        raise ValueError("the layer failed") from error


def failing_cleanup() -> None:
    try:
        allocate()
    except RuntimeError:
        raise KeyError("cache")  # noqa: B904 - the implicit context is what is tested


def hiding() -> None:
    try:
        allocate()
    except RuntimeError:
        raise KeyError("cache") from None


@pytest.mark.parametrize(
    ("work", "expected"),
    [(allocate, CERTAIN), (wrapping, CERTAIN), (failing_cleanup, POSSIBLE), (hiding, None)],
)
def test_a_wrapped_failure_is_found_and_an_error_while_handling_one_is_only_possibly_one(
    work: Callable[[], None], expected: MemoryFailure | None
) -> None:
    assert memory_failure(caught(work)) is expected


def test_a_chain_that_closes_on_itself_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert memory_failure(first) is None
    release_frames(first)
