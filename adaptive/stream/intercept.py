"""Run streaming rules in place of layers' `forward`, in the thread that streams and nowhere else.

While a stream is open, a *dispatcher* stands in the place of each ruled layer's own `forward`. It looks up
the rule of its layer in a `ContextVar`, which a step sets for its own length. Any other thread, and any call
between two steps, therefore runs the layer's own `forward`. Nothing is installed per step.

Offloading (accelerate's hooks, diffusers' hook registry) wraps `module.forward`. The dispatcher therefore
goes to the *innermost* place, where the class's own `forward` is kept: every hook around it still runs, and
hooks may be added and removed meanwhile. Streams share dispatchers; the last one that lets go removes them.
Knows neither tensors nor families.
"""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from adaptive.errors import UnsupportedVae

Forward = Callable[..., Any]
# A rule is called as rule(module, forward, *args, **kwargs) in place of forward(*args, **kwargs).
Rules = Mapping[nn.Module, Callable[..., Any]]

_set_eval_frame: Callable[[Any], Any] = torch._C._dynamo.eval_frame.set_eval_frame
_RULES: ContextVar[Rules] = ContextVar("rules", default={})  # noqa: B039 - nobody writes to the default


@contextmanager
def running(rules: Rules) -> Iterator[None]:
    """Within the context and in this thread, run `rules` in place of the forwards of their modules.

    The modules must have dispatchers (`Interception`). An outer context's rules do not run meanwhile. If the
    caller is being compiled, the code within the context is not: the rules would be bypassed there.
    """
    active = dict(rules)
    token = _RULES.set(active)
    compiler = _set_eval_frame(None)  # as `torch.compiler.disable` does, which takes seconds to import
    try:
        yield
    finally:
        _set_eval_frame(compiler)
        _RULES.reset(token)
        active.clear()  # a copy of this context, such as an asyncio task's, may outlive the step


class Dispatcher:
    """Stands in the place of a module's own `forward` and runs the rule of the current context, if any.

    Code that is being compiled gets the module's own `forward`, because Dynamo cannot trace a `ContextVar`.
    A copied or pickled module gets its own `forward` back, bound to itself.
    """

    # Dynamo guards on a `__dict__`. It stays empty, because wrappers copy it (`functools.update_wrapper`).
    __slots__ = ("__dict__", "__weakref__", "forward", "had_attribute", "module", "users")

    def __init__(self, module: nn.Module, forward: Forward, *, had_attribute: bool) -> None:
        self.module = module
        self.forward = forward
        self.had_attribute = had_attribute
        self.users = 0

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            rule = _RULES.get().get(self.module)
            if rule is not None:
                return rule(self.module, self.forward, *args, **kwargs)
        return self.forward(*args, **kwargs)

    @property
    def __wrapped__(self) -> Forward:
        """The module's own `forward`: `inspect.signature` asks for it."""
        return self.forward

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        return MethodType(type(self.module).forward, copy.deepcopy(self.module, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, "forward")  # as a bound method does


class Interception:
    """Dispatchers on `layers` of `network`, until `close` or until this object is garbage.

    Raises `UnsupportedVae`, naming the layer, if unknown code has replaced a layer's `forward`: a rule would
    bypass that code.
    """

    def __init__(self, network: nn.Module, layers: Iterable[nn.Module]) -> None:
        layers = tuple(layers)
        check_forwards(network, layers)
        with _INSTALLING:
            dispatchers = [_install(layer) for layer in layers]
        _remove_released()
        self._release = weakref.finalize(self, _release, dispatchers)
        self._release.atexit = False

    def close(self) -> None:
        """Let go of the dispatchers. Calling it again does nothing."""
        self._release()


def check_forwards(network: nn.Module, layers: Iterable[nn.Module], action: str = "streaming") -> None:
    """Raise `UnsupportedVae`, naming the layer, if unknown code replaced the `forward` of one of `layers`."""
    for layer in layers:
        try:
            _innermost(layer)
        except _ForwardReplacedError as error:
            what = f"the forward of {place_of(network, layer)} was replaced by {error.forward!r}"
            raise UnsupportedVae(
                type(network).__name__, f"{action}: {what}; remove that to stream it"
            ) from None


def place_of(network: nn.Module, layer: nn.Module) -> str:
    """Return the name and class of `layer` in `network`, for error texts."""
    name = next((name for name, module in network.named_modules() if module is layer), "a layer")
    return f"{name or 'itself'} ({type(layer).__name__})"


class _ForwardReplacedError(Exception):
    """Unknown code has replaced a module's `forward` by `forward`."""

    def __init__(self, forward: object) -> None:
        super().__init__(forward)
        self.forward = forward


class _Innermost(NamedTuple):
    """A module's own forward, or the dispatcher in its place, inside all known hooks.

    It is kept at `key` of `namespace`, the `__dict__` of some object, or is the class's if there is no `key`.
    """

    namespace: MutableMapping[str, Any]
    key: str
    forward: Forward


# Never waited for inside a finalizer, which may run at any time in a thread that holds it.
_INSTALLING = threading.Lock()
_RELEASED: deque[Dispatcher] = deque()


def _install(module: nn.Module) -> Dispatcher:
    namespace, key, forward = _innermost(module)
    if isinstance(forward, Dispatcher):
        dispatcher = forward
    else:
        dispatcher = Dispatcher(module, forward, had_attribute=key in namespace)
        namespace[key] = dispatcher
    dispatcher.users += 1
    return dispatcher


def _release(dispatchers: list[Dispatcher]) -> None:
    _RELEASED.extend(dispatchers)
    _remove_released()


def _remove_released() -> None:
    """Remove what was released, unless another holder of the lock does it when it is done."""
    while _RELEASED and _INSTALLING.acquire(blocking=False):
        try:
            while _RELEASED:
                _uninstall(_RELEASED.popleft())
        finally:
            _INSTALLING.release()


def _uninstall(dispatcher: Dispatcher) -> None:
    dispatcher.users -= 1
    if dispatcher.users:
        return
    module = dispatcher.module
    try:
        namespace, key, forward = _innermost(module)
    except _ForwardReplacedError:
        return  # someone wrapped it meanwhile; without rules it calls the module's own forward
    if forward is not dispatcher:
        return
    if namespace is module.__dict__ and key == "forward" and not dispatcher.had_attribute:
        del namespace[key]
    else:
        namespace[key] = dispatcher.forward


def _innermost(module: nn.Module) -> _Innermost:
    """Raises `_ForwardReplacedError` if unknown code has replaced the forward."""
    namespace: MutableMapping[str, Any] = module.__dict__
    key = "forward"
    while True:
        forward = namespace.get(key)
        if forward is None and key == "forward" and namespace is module.__dict__:
            return _Innermost(namespace, key, module.forward)
        if _is_own(module, forward):
            return _Innermost(namespace, key, cast("Forward", forward))
        namespace, key = _inside(module, forward)


def _is_own(module: nn.Module, forward: object) -> bool:
    if isinstance(forward, Dispatcher):
        return forward.module is module
    if not isinstance(forward, MethodType) or forward.__self__ is not module:
        return False
    return forward.__func__ is type(module).forward


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
    raise _ForwardReplacedError(forward)
