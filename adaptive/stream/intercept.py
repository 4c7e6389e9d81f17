"""Interception: for the length of one step, chosen modules run a streaming rule in place of their own
`forward`.

Owns where that replacement goes. Offloading (accelerate's hooks, diffusers' hook registry) wraps
`module.forward`, so the rule is put at the *innermost* place, where the class's own `forward` is kept: every
hook around it is called as always, and leaving restores the very objects that were there. Knows nothing of
tensors or families.
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
    """One place that holds a module's innermost forward: a key of some object's `__dict__`."""

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
    """The place of the module's own `forward` beneath all known hooks, and that `forward`.

    Raises `UnsupportedVae` where something unknown has replaced it: it could not be honoured.
    """
    namespace: MutableMapping[str, Any] = module.__dict__
    key = "forward"
    while True:
        forward = namespace.get(key)
        if forward is None and key == "forward" and namespace is module.__dict__:
            return _Slot(namespace, key), module.forward
        if isinstance(forward, MethodType) and forward.__func__ is type(module).forward:
            return _Slot(namespace, key), forward
        namespace, key = _beneath(module, forward)


def _beneath(module: nn.Module, forward: object) -> tuple[MutableMapping[str, Any], str]:
    """Where the forward that `forward` wraps is kept."""
    if isinstance(forward, functools.partial):
        wrapper = forward.func
        if wrapper.__module__ == "accelerate.hooks" and "_old_forward" in module.__dict__:
            return module.__dict__, "_old_forward"
        if wrapper.__module__ == "diffusers.hooks.hooks":
            reference: Any = cast("Any", wrapper).__closure__[0].cell_contents
            key = "forward" if reference.original_forward is None else "original_forward"
            return vars(reference), key
    raise UnsupportedVae(type(module).__name__, f"streaming: its forward was replaced by {forward!r}")


def replacing_forward(instead: Forward) -> Callable[[nn.Module, Forward], Forward]:
    """For `forwards_replaced`: run `instead(module, forward, ...)` in place of `forward(...)`."""
    return functools.partial(functools.partial, instead)


@contextmanager
def forwards_replaced(rules: Mapping[nn.Module, Callable[[nn.Module, Forward], Forward]]) -> Iterator[None]:
    """Within, each module runs `rules[module](module, forward)` instead of `forward`; after, all is as it
    was."""
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
