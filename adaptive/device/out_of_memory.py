"""Which exceptions report a failed allocation, on any device.

Owns one table of the messages of torch and its libraries. Some of them are also raised for other reasons,
such as a dtype that a library does not support: these are possible failures, not certain ones. This module
does not know what is done about a failure.
"""

import traceback
from enum import Enum

import torch


class MemoryFailure(Enum):
    """How surely an exception is an out-of-memory."""

    CERTAIN = "certain"
    POSSIBLE = "possible"  # a few smaller attempts are worthwhile; if they fail too, it is another error


_CERTAIN, _POSSIBLE = MemoryFailure.CERTAIN, MemoryFailure.POSSIBLE

# Substrings of messages, and where each comes from. The first that occurs in a message decides.
_MESSAGES = (
    # Host. The first is oneDNN's text for an unsupported operation; it begins like the one for a failed
    # allocation of scratch memory or code.
    ("could not create a primitive descriptor", _POSSIBLE),  # oneDNN
    ("could not create a primitive", _CERTAIN),  # oneDNN
    ("could not execute a primitive", _CERTAIN),  # oneDNN
    ("DefaultCPUAllocator: can't allocate memory", _CERTAIN),  # torch's CPU allocator on Linux
    ("DefaultCPUAllocator: not enough memory", _CERTAIN),  # torch's CPU allocator on Windows
    ("std::bad_alloc", _CERTAIN),  # C++
    # CUDA, also raised by libraries that bring their own allocator. "CUDA error:" is the runtime's and "CUDA
    # driver error:" the driver's, which torch calls for expandable segments.
    ("CUDA out of memory", _CERTAIN),  # torch's CUDA allocator
    ("CUDA error: out of memory", _CERTAIN),  # cudaErrorMemoryAllocation
    ("CUDA driver error: out of memory", _CERTAIN),  # CUDA_ERROR_OUT_OF_MEMORY
    # cuDNN. Its allocations in host memory count too: smaller chunks need less of both. torch's wrapper tries
    # one algorithm after another, drops each error, out-of-memory included, and raises one of the last two.
    ("CUDNN_STATUS_ALLOC_FAILED", _CERTAIN),  # before cuDNN 9
    ("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", _CERTAIN),  # cuDNN 9
    ("CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", _CERTAIN),  # cuDNN 9
    ("Unable to find a valid cuDNN algorithm", _POSSIBLE),  # torch with cuDNN's older interface
    (
        "was unable to find an engine to execute this computation",
        _POSSIBLE,
    ),  # torch, newer interface
    # cuBLAS creates its handle and workspace at the first call, and cannot on a device that is full.
    ("CUBLAS_STATUS_ALLOC_FAILED", _CERTAIN),  # cuBLAS
    ("CUBLAS_STATUS_NOT_INITIALIZED", _POSSIBLE),  # cuBLAS; also after other faults of the context
    # ROCm
    ("HIP out of memory", _CERTAIN),  # torch's allocator
    ("HIP error: out of memory", _CERTAIN),  # the runtime
    ("hipErrorOutOfMemory", _CERTAIN),  # the runtime's name of it
    ("miopenStatusAllocFailed", _CERTAIN),  # MIOpen
    ("Memory not available to allocate buffer", _CERTAIN),  # MIOpen's workspace
    ("HIPBLAS_STATUS_ALLOC_FAILED", _CERTAIN),  # hipBLAS
    ("HIPBLAS_STATUS_NOT_INITIALIZED", _POSSIBLE),  # hipBLAS, see cuBLAS
    # Apple and Intel
    ("MPS backend out of memory", _CERTAIN),  # torch's MPS allocator
    ("XPU out of memory", _CERTAIN),  # torch's XPU allocator
    ("UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY", _CERTAIN),  # Level Zero
    ("UR_RESULT_ERROR_OUT_OF_HOST_MEMORY", _CERTAIN),  # Level Zero
    ("UR_RESULT_ERROR_OUT_OF_RESOURCES", _POSSIBLE),  # Level Zero; also registers or threads
)


def memory_failure(error: BaseException) -> MemoryFailure | None:
    """How surely `error` reports a failed allocation; None where it does not.

    Any exception may have been raised from one (`raise ... from`), which counts like the allocation's own. If
    it was only raised while one was handled, it counts as a possible failure.
    """
    seen: set[int] = set()
    certain = True
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        found = _own_failure(link)
        if found is not None:
            return found if certain else MemoryFailure.POSSIBLE
        if link.__cause__ is not None:
            link = link.__cause__
        else:
            link = None if link.__suppress_context__ else link.__context__
            certain = False
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception certainly reports a failed allocation, on any device."""
    return memory_failure(error) is MemoryFailure.CERTAIN


def release_frames(error: BaseException) -> None:
    """Drop the local variables of the calls that `error` and its causes passed through.

    An exception that is kept would otherwise keep the tensors of the failed call alive.
    """
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        link = rest.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            rest += [link.__cause__, link.__context__]


def _own_failure(error: BaseException) -> MemoryFailure | None:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return MemoryFailure.CERTAIN
    if not isinstance(error, RuntimeError):
        return None
    message = str(error)
    return next((kind for text, kind in _MESSAGES if text in message), None)
