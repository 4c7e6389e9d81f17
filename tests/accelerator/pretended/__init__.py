"""A pretended CUDA card (or other accelerator) for a torch that was built without one. Tests only.

    machine = Machine.create(path, [CardSpec()])  # the cards, shared by processes
    env = environment(machine, nvml_library)      # of a process that finds them: pytest, `framefit serve`
    machine.cards[0].leave(100 * MIB)             # steers the card of every process, at once

`device/` beside this folder is the device itself, in C++: what it imitates is said in `device/device.h`.
Operators run on the CPU, at once; memory, its limits, errors, random numbers, streams and late copies are
those of a card. There is no cuDNN and no fused attention, so it proves logic, not the size of margins.
"""

from pretended.environment import AS_CUDA, PRIVATE_NAME, environment, unavailable
from pretended.machine import MIB, Card, CardSpec, Machine

__all__ = ["AS_CUDA", "MIB", "PRIVATE_NAME", "Card", "CardSpec", "Machine", "environment", "unavailable"]
