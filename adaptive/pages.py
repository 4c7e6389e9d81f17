"""How torch maps its host tensors.

A file of its own, for every command asks first: importing this costs nothing.

Owns: torch's switch in the environment. Must not know: torch, what is mapped.
"""

import os


def ask_for_huge_pages() -> None:
    """Have torch map each host tensor of 2 MiB or more in huge pages, where the kernel lets programs ask.

    Heard only before the process makes its first tensor; children inherit it. A decode on the CPU then spends
    half as long in page faults, which were a fifth of its time, and its resident set stays what it was.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
