"""A child process that never outlives its parent, whatever kills the parent.

Linux sends the child a signal when the thread that started it ends (`prctl(PR_SET_PDEATHSIG)`, man 2 prctl);
the parent must therefore start its children from a thread that lives as long as itself. Knows nothing of what
either process does.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

# What a worker says with its exit status; anything else is a crash.
EXIT_DEVICE_UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h


def end_with_parent(parent_pid: int) -> None:
    """From here on this process is killed when process `parent_pid`, its parent, ends; at once where it ended
    already.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before the line above: no signal will come
        raise SystemExit(f"the parent process {parent_pid} is gone")
