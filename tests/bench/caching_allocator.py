"""A model of torch's caching allocator for CUDA, from its documented constants: what it reserves for a
sequence of allocations, and whether the sequence completes on a card of a given size.

Source of the rules: PyTorch, `c10/cuda/CUDACachingAllocator.cpp` and `CUDAAllocatorConfig` (rounding to 512
bytes, segments of 2 MiB for requests up to 1 MiB, of 20 MiB below 10 MiB, else rounded up to 2 MiB; best fit;
blocks are split and merged; expandable segments map pages of 2 or 20 MiB at the end of one range of
addresses).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

MIB = 2**20
ROUNDING = 512
SMALL = MIB  # requests up to this come from the small pool
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT = 10 * MIB  # requests from this on get a segment of their own size
OWN_ROUNDING = 2 * MIB
RANGE = 2**50  # addresses between ranges that pages are mapped in


class OutOfMemory(Exception):
    """The card has no memory for a request, even after unused segments were given back."""


@dataclass(eq=False, slots=True)
class Block:
    """Bytes next to each other in one segment."""

    pool: Pool
    address: int
    size: int
    free: bool = False
    before: Block | None = None
    after: Block | None = None

    @property
    def whole(self) -> bool:
        """Whether it is all of its segment."""
        return self.before is None and self.after is None


@dataclass(eq=False, slots=True)
class Pool:
    """Free blocks by size, then address."""

    small: bool
    free: list[tuple[int, int, Block]] = field(default_factory=list)
    last: Block | None = None  # of the expandable segment

    def put(self, block: Block) -> None:
        block.free = True
        insort(self.free, (block.size, block.address, block), key=lambda entry: entry[:2])

    def take(self, block: Block) -> None:
        del self.free[bisect_left(self.free, (block.size, block.address), key=lambda entry: entry[:2])]
        block.free = False

    def best_fit(self, size: int) -> Block | None:
        place = bisect_left(self.free, (size, -1), key=lambda entry: entry[:2])
        return self.free[place][2] if place < len(self.free) else None


def rounded(size: int, to: int = ROUNDING) -> int:
    """`size`, at least 1, up to the next multiple of `to`."""
    return -(-max(1, size) // to) * to


class CachingAllocator:
    """One card's allocator. `capacity_bytes` is what the device gives at most; None is without a limit."""

    def __init__(self, *, expandable: bool = False, capacity_bytes: int | None = None) -> None:
        self.expandable = expandable
        self.capacity_bytes = capacity_bytes
        self.allocated_bytes = self.reserved_bytes = 0
        self.peak_allocated = self.peak_reserved = 0
        self._pools = Pool(small=True), Pool(small=False)
        self._next_address = 0

    @property
    def split_bytes(self) -> int:
        """Free bytes of the large pool in blocks that are not whole segments (`inactive_split_bytes`)."""
        return sum(size for size, _, block in self._pools[1].free if not block.whole)

    def allocate(self, size: int) -> Block:
        """A block for a request of `size` bytes. Raises `OutOfMemory`."""
        size = rounded(size)
        pool = self._pools[0] if size <= SMALL else self._pools[1]
        block = pool.best_fit(size)
        if block is not None:
            pool.take(block)
        else:
            block = self._expanded(pool, size) if self.expandable else self._new_segment(pool, size)
        self._split(block, size)
        self.allocated_bytes += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated_bytes)
        return block

    def release(self, block: Block) -> None:
        """Return a block; it merges with free neighbours."""
        self.allocated_bytes -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                block.pool.take(neighbour)
                self._merge(block, neighbour)
        block.pool.put(block)

    def give_back(self) -> None:
        """Return unused segments to the device, as `torch.cuda.empty_cache` does."""
        for pool in self._pools:
            for _, _, block in list(pool.free):
                if self.expandable:
                    self._unmap(block)
                elif block.whole:
                    pool.take(block)
                    self.reserved_bytes -= block.size

    def _reserve(self, size: int) -> None:
        if self.capacity_bytes is not None and self.reserved_bytes + size > self.capacity_bytes:
            self.give_back()
            if self.reserved_bytes + size > self.capacity_bytes:
                raise OutOfMemory
        self.reserved_bytes += size
        self.peak_reserved = max(self.peak_reserved, self.reserved_bytes)

    def _new_segment(self, pool: Pool, size: int) -> Block:
        if pool.small:
            segment = SMALL_SEGMENT
        else:
            segment = LARGE_SEGMENT if size < OWN_SEGMENT else rounded(size, OWN_ROUNDING)
        self._reserve(segment)
        block = Block(pool, self._next_address, segment)
        self._next_address += RANGE
        return block

    def _expanded(self, pool: Pool, size: int) -> Block:
        """A block at the end of the pool's range of addresses, where pages are mapped as needed."""
        page = SMALL_SEGMENT if pool.small else LARGE_SEGMENT
        while True:
            last = pool.last
            usable = last.size if last is not None and last.free else 0
            missing = rounded(size - usable, page)
            expected = self.reserved_bytes + missing
            self._reserve(missing)
            if self.reserved_bytes == expected:
                break
            self.reserved_bytes -= missing  # pages went back to make room, perhaps those at the end
        block = Block(
            pool, self._next_address if last is None else last.address + last.size, missing, before=last
        )
        if last is None:
            self._next_address += RANGE
        else:
            last.after = block
            if last.free:
                pool.take(last)
                self._merge(block, last)
        pool.last = block
        return block

    def _unmap(self, block: Block) -> None:
        """Give the whole pages of a free block back; what is left of it ends or begins a range of
        addresses."""
        pool, end = block.pool, block.address + block.size
        page = SMALL_SEGMENT if pool.small else LARGE_SEGMENT
        first, last = -(-block.address // page) * page, end // page * page
        if last <= first:
            return
        pool.take(block)
        self.reserved_bytes -= last - first
        head = self._left(block, block.address, first - block.address, before=block.before)
        tail = self._left(block, last, end - last, after=block.after)
        if block.before is not None:
            block.before.after = head
        if block.after is not None:
            block.after.before = tail
        if pool.last is block:
            pool.last = tail or head or None

    def _left(
        self, block: Block, address: int, size: int, before: Block | None = None, after: Block | None = None
    ) -> Block | None:
        if not size:
            return None
        piece = Block(block.pool, address, size, before=before, after=after)
        block.pool.put(piece)
        return piece

    def _split(self, block: Block, size: int) -> None:
        rest = block.size - size
        if rest < ROUNDING or (not block.pool.small and not self.expandable and rest <= SMALL):
            return
        tail = Block(block.pool, block.address + size, rest, before=block, after=block.after)
        if block.after is not None:
            block.after.before = tail
        elif block.pool.last is block:
            block.pool.last = tail
        block.size, block.after = size, tail
        block.pool.put(tail)

    def _merge(self, block: Block, neighbour: Block) -> None:
        if neighbour is block.before:
            block.address, block.before = neighbour.address, neighbour.before
            if block.before is not None:
                block.before.after = block
        else:
            block.after = neighbour.after
            if block.after is not None:
                block.after.before = block
            elif block.pool.last is neighbour:
                block.pool.last = block
        block.size += neighbour.size
