"""How torch's allocator on a GPU is set up for workers."""

import os
import sys

# The older name is still read by torch.
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def allocator_environ() -> dict[str, str]:
    """Environment for a GPU's worker: expandable segments, where Linux has them.

    With whole segments some published models' decodes need 1.7 times their live bytes to complete; with
    pages mapped one after another 1.23 times is enough for all (`tests/bench/results/allocator.md`). Empty
    where the operator has set the allocator up.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in VARIABLES):
        return {}
    return {VARIABLES[0]: "expandable_segments:True"}
