"""Whether a call of a VAE's method comes from this library's own replacement of it, in the same thread.

A replacement of `vae.decode` calls `vae.decode` for a decode in one call, and that call must reach the VAE's
own method. A decode of the same VAE in another thread is no such call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_running: ContextVar[tuple[int, ...]] = ContextVar("running", default=())


def is_inside(replacement: object) -> bool:
    """Whether `replacement` is running in this context."""
    return id(replacement) in _running.get()


@contextmanager
def inside(replacement: object) -> Iterator[None]:
    """Within the block, `replacement` is running."""
    token = _running.set((*_running.get(), id(replacement)))
    try:
        yield
    finally:
        _running.reset(token)
