"""Computes the answers of readiness and metrics, on threads that no other request uses.

However many clients ask at once, an answer is computed at most twice: once for those that came before the
computation began, and once for all that came since.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedAnswer(Generic[T]):
    """An answer that everybody gets who has asked before its computation began."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def get(self, compute: Callable[[], T]) -> T:
        """Return what `compute` returns if it is called from now on; raises what it raises."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._after(self._running, compute))
        return await asyncio.shield(self._next)

    async def _after(self, before: "asyncio.Task[T] | None", compute: Callable[[], T]) -> T:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await asyncio.get_running_loop().run_in_executor(self._threads, compute)
