"""Ends a child process when its parent ends, even if the parent is killed.

Linux signals the child when the thread that started it ends (`prctl(PR_SET_PDEATHSIG)`, man 2 prctl). The
parent must therefore start its children from a thread that lives as long as the process. This file does not
know what either process does.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

# Exit statuses of a worker. Any other but 0 is a crash.
# Its device cannot be used.
EXIT_DEVICE_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h
# It could not reach the database when it had to.
EXIT_DATABASE_UNAVAILABLE = 74  # EX_IOERR
# Its job made no progress for too long.
EXIT_STALLED = 75  # EX_TEMPFAIL


def end_with_parent(parent_pid: int) -> None:
    """Have this process killed when its parent, process `parent_pid`, ends.

    Raises `SystemExit` if the parent has ended already, and `OSError` if `prctl` fails.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it ended before prctl took effect, so no signal will come
        raise SystemExit(f"the parent process {parent_pid} is gone")
