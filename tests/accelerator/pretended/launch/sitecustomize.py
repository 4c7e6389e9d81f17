"""Runs at the start of each Python process whose PYTHONPATH has this folder; see `pretended.environment`."""

import os
from pathlib import Path

if "PRETENDED_CARDS" in os.environ:
    from pretended.environment import AS_CUDA
    from pretended.machine import Machine
    from pretended.start import load

    load(
        Machine.open(Path(os.environ["PRETENDED_CARDS"])),
        as_cuda=os.environ["PRETENDED_DEVICE"] == AS_CUDA,
    )
