"""Run a streaming rule in place of a module's `forward`, for the length of one step.

Offloading (accelerate's hooks, diffusers' hook registry) wraps `module.forward`. The rule therefore goes to
the *innermost* place, where the class's own `forward` is kept: every hook around it still runs. On exit, the
very objects that were replaced are put back. Knows neither tensors nor families.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

from torch import nn

from adaptive.errors import UnsupportedVae

Forward = Callable[..., Any]
_MISSING = object()


class _Slot:
    """The place that holds a module's innermost forward: a key of some object's `__dict__`."""

    __slots__ = ("_key", "_namespace", "_previous")

    def __init__(self, namespace: MutableMapping[str, Any], key: str) -> None:
        self._namespace = namespace
        self._key = key
        self._previous = namespace.get(key, _MISSING)

    def fill(self, forward: Forward) -> None:
        self._namespace[self._key] = forward

    def restore(self) -> None:
        if self._previous is _MISSING:
            del self._namespace[self._key]
        else:
            self._namespace[self._key] = self._previous


def innermost(module: nn.Module) -> tuple[_Slot, Forward]:
    """Return the place of the module's own `forward` inside all known hooks, and that `forward`.

    Raises `UnsupportedVae` if unknown code has replaced it: a rule would bypass that code.
    """
    namespace: MutableMapping[str, Any] = module.__dict__
    key = "forward"
    while True:
        forward = namespace.get(key)
        if forward is None and key == "forward" and namespace is module.__dict__:
            return _Slot(namespace, key), module.forward
        if isinstance(forward, MethodType) and forward.__func__ is type(module).forward:
            return _Slot(namespace, key), forward
        namespace, key = _inside(module, forward)


def _inside(module: nn.Module, forward: object) -> tuple[MutableMapping[str, Any], str]:
    """Return where the forward that `forward` wraps is kept: a `__dict__` and a key."""
    if isinstance(forward, functools.partial):
        wrapper = forward.func
        if wrapper.__module__ == "accelerate.hooks" and "_old_forward" in module.__dict__:
            return module.__dict__, "_old_forward"
        if wrapper.__module__ == "diffusers.hooks.hooks":
            reference: Any = cast("Any", wrapper).__closure__[0].cell_contents
            key = "forward" if reference.original_forward is None else "original_forward"
            return vars(reference), key
    raise UnsupportedVae(
        type(module).__name__, f"streaming: its forward was replaced by {forward!r}; remove that to stream it"
    )


def replacing_forward(instead: Forward) -> Callable[[nn.Module, Forward], Forward]:
    """Return a rule for `forwards_replaced`: it runs `instead(module, forward, ...)`."""
    return functools.partial(functools.partial, instead)


@contextmanager
def forwards_replaced(rules: Mapping[nn.Module, Callable[[nn.Module, Forward], Forward]]) -> Iterator[None]:
    """Within the context, each module runs `rules[module](module, forward)` in place of `forward`."""
    filled: list[_Slot] = []
    try:
        for module, rule in rules.items():
            slot, forward = innermost(module)
            slot.fill(rule(module, forward))
            filled.append(slot)
        yield
    finally:
        for slot in reversed(filled):
            slot.restore()
