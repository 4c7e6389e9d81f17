"""Names the errors of a device: too little memory, or a fault after which the process must end.

Must not know jobs or stages.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from adaptive.device.out_of_memory import is_out_of_memory, release_frames
from adaptive.errors import NoDevice


class OutOfMemory(Exception):
    """The device has too little memory for a stage, and nothing that makes it smaller has helped.

    `message` is torch's, with the bytes that it asked for; `needed_bytes` and `free_bytes` afterwards, if
    known.
    """

    free_bytes: int | None = None
    needed_bytes: int | None = None
    is_reported = False  # whether an event has told of it

    def __init__(self, stage: str, message: str = "") -> None:
        self.stage = stage
        super().__init__(f"out of memory while {stage}" + (f": {message}" if message else ""))


class DeviceFault(Exception):
    """The device's context is broken: this process can no longer use the device and must end."""


def device_fault(error: BaseException) -> BaseException | None:
    """The error of a broken or lost device that `error` is, or was raised from; None where there is none."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, NoDevice) or (
            isinstance(link, torch.AcceleratorError) and not is_out_of_memory(link)
        ):
            return link
        link = link.__cause__
    return None


@contextmanager
def translated_device_errors(stage: str | Callable[[], str]) -> Iterator[None]:
    """Raise torch's out-of-memory as `OutOfMemory` and its accelerator errors as `DeviceFault`.

    An error that is only possibly an out-of-memory passes unchanged: the decoder has tried smaller chunks
    before it raises one. The failed call's tensors are freed before `OutOfMemory` is raised. `stage` may be a
    function, called after a failure.
    """
    message: str | None = None
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            message = str(error).partition("\n")[0][:300]
            release_frames(error)  # as the context of `OutOfMemory` it would keep them
        elif isinstance(error, torch.AcceleratorError):
            raise DeviceFault(str(error)) from error
        else:
            raise
    if message is not None:
        raise OutOfMemory(stage if isinstance(stage, str) else stage(), message)
