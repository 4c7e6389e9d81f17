"""The model of torch's caching allocator (`tests/bench/caching_allocator.py`) beside the statistics of the
card."""

import gc
import random
import sys
from pathlib import Path

import pytest
import torch
from pretended import MIB, Card

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from caching_allocator import CachingAllocator, OutOfMemory


def numbers(allocator: CachingAllocator) -> tuple[int, int, int]:
    return allocator.allocated_bytes, allocator.reserved_bytes, allocator.split_bytes


def statistics() -> tuple[int, int, int]:
    found = torch.accelerator.memory_stats()
    names = "allocated_bytes.all", "reserved_bytes.all", "inactive_split_bytes.large_pool"
    allocated, reserved, split = (found[f"{name}.current"] for name in names)
    return allocated, reserved, split


@pytest.mark.parametrize("seed", range(3))
def test_the_model_reserves_what_the_card_does(seed: int, card: Card, device: str) -> None:
    gc.collect()
    torch.accelerator.empty_cache()
    draw = random.Random(seed)
    card.leave(90 * MIB)
    model = CachingAllocator(capacity_bytes=card.free_bytes)
    kept: list[tuple[torch.Tensor, object]] = []
    refused = 0
    for _ in range(600):
        if kept and draw.random() < 0.5:
            tensor, block = kept.pop(draw.randrange(len(kept)))
            del tensor
            model.release(block)  # type: ignore[arg-type]
        else:
            size = round(2 ** draw.uniform(0, 25.5))
            try:
                tensor = torch.empty(size, dtype=torch.uint8, device=device)
            except torch.OutOfMemoryError:
                refused += 1
                with pytest.raises(OutOfMemory):
                    model.allocate(size)
                continue
            kept.append((tensor, model.allocate(size)))
            del tensor
        assert numbers(model) == statistics()
    assert refused, "the card was never full"
