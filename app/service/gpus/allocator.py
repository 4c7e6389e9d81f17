"""How torch's allocator on a GPU is set up for workers."""

import os
import sys

# The older name is still read by torch.
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def allocator_environ() -> dict[str, str]:
    """Environment for a GPU's worker: expandable segments, where Linux has them.

    With whole segments a decode reserves up to 2.5 times its live bytes, and completes with up to 1.7 times;
    with pages mapped one after another it completes with 1.3 times at most
    (`tests/bench/results/allocator.md`). Empty where the operator has set the allocator up.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in VARIABLES):
        return {}
    return {VARIABLES[0]: "expandable_segments:True"}
