"""How torch maps its host tensors.

A file of its own, for every command asks first: importing this costs nothing.

Owns: torch's switch in the environment. Must not know: torch, what is mapped.
"""

import os
import sys

_SWITCH = "THP_MEM_ALLOC_ENABLE"


def enable_huge_pages() -> None:
    """Have torch map each host tensor of 2 MiB or more in huge pages, where the kernel lets programs ask.

    Heard only before the process makes its first tensor; children inherit it. A decode on the CPU then spends
    half as long in page faults, which were a fifth of its time, and its resident set stays what it was.
    """
    os.environ.setdefault(_SWITCH, "1")


def restart_with_huge_pages() -> None:
    """The same for a script that has imported torch, or what makes tensors when it is imported: the process
    starts itself anew, unless it was asked before.
    """
    if _SWITCH not in os.environ:
        enable_huge_pages()
        os.execv(sys.executable, sys.orig_argv)
