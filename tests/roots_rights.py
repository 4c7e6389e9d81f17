"""Takes root's right to ignore the modes of files away, so that tests of permissions work for root, too."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# https://man7.org/linux/man-pages/man7/capabilities.7.html: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
ROOTS_RIGHTS = 1 << 1 | 1 << 2


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """Let this thread, and those it starts, obey the modes of files although it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before, reduced = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    for index, value in enumerate(before):
        reduced[index] = value
    reduced[0] &= ~ROOTS_RIGHTS
    assert libc.capset(header, reduced) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
