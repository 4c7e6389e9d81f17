"""Runs handlers around a pipeline's denoiser calls and around its `scheduler.step`.

`watch(pipe, handlers)` is a context manager. Within it, each handler sees every call of a denoiser and every
step of a scheduler, and decides whether, how often and with what the call is made. Denoisers are called from
outside of everything else that wraps them: forward hooks, accelerate's and diffusers' offload hooks, compiled
calls. So weights may be moved and hooks be changed between two attempts at a call. Schedulers that a pipeline
makes from its own one by a copy or from its configuration are watched, too. Must not know what handlers do.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

CallNext = Callable[..., Any]
Around = Callable[[CallNext, tuple[Any, ...], Mapping[str, Any]], Any]
_DENOISER_NAMES = ("transformer", "unet", "controlnet", "denoiser")


class DenoiseHandler:
    """Sees the calls of a denoising loop; a subclass overrides what it needs.

    `call_next(*args, **kwargs)` makes the call, through the handlers after this one. A handler may change the
    arguments, call it again after an error, or not call it and return an answer of its own.
    """

    def around_denoiser(
        self,
        call_next: CallNext,
        module: nn.Module,  # noqa: ARG002 - for subclasses
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Return the result of one call of the denoiser `module`."""
        return call_next(*args, **kwargs)

    def around_step(
        self,
        call_next: CallNext,
        scheduler: Any,  # noqa: ARG002 - for subclasses
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Return the result of `scheduler.step`."""
        return call_next(*args, **kwargs)


@contextmanager
def watch(pipe: Any, handlers: Sequence[DenoiseHandler]) -> Iterator[None]:
    """Run `handlers`, the first outermost, around the pipeline's denoiser and scheduler calls in the block.

    Nests: handlers of an inner block run outside of those of an outer one. Nothing is installed if there are
    no handlers, and nothing stays behind.
    """
    handlers = tuple(handlers)
    with ExitStack() as installed:
        if handlers:
            for module in denoisers_of(pipe).values():
                installed.enter_context(around_module(module, _through(module, handlers)))
            for scheduler in schedulers_of(pipe).values():
                installed.enter_context(_watched_scheduler(scheduler, handlers))
        yield


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's components that are called in each step, by name."""
    return {
        name: component
        for name, component in pipe.components.items()
        if name.startswith(_DENOISER_NAMES) and isinstance(component, nn.Module)
    }


def schedulers_of(pipe: Any) -> dict[str, Any]:
    """The pipeline's schedulers, by name."""
    return {
        name: component
        for name, component in pipe.components.items()
        if hasattr(component, "set_timesteps") and hasattr(component, "step")
    }


def scheduler_name(pipe: Any, scheduler: Any) -> str:
    """The name of a scheduler among the pipeline's; "copy" for one that a pipeline made from them."""
    return next((name for name, each in schedulers_of(pipe).items() if each is scheduler), "copy")


@contextmanager
def around_module(module: nn.Module, around: Around) -> Iterator[None]:
    """Run `around(call_next, args, kwargs)` in place of each call of the module within the block.

    It is put where torch keeps a module's compiled call: torch calls that in place of its own code, outside
    of all hooks, and leaves it out of copies and pickles.
    """
    before: CallNext | None = module._compiled_call_impl

    def innermost(*args: Any, **kwargs: Any) -> Any:
        return (before or module._call_impl)(*args, **kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        return around(innermost, args, kwargs)

    module._compiled_call_impl = call
    try:
        yield
    finally:
        if module._compiled_call_impl is call:  # else it was compiled meanwhile
            module._compiled_call_impl = before


def _through(module: nn.Module, handlers: Sequence[DenoiseHandler]) -> Around:
    def around(handler: DenoiseHandler, call_next: CallNext) -> CallNext:
        return lambda *args, **kwargs: handler.around_denoiser(call_next, module, args, kwargs)

    return lambda call_next, args, kwargs: _chain(call_next, around, handlers)(*args, **kwargs)


@contextmanager
def _watched_scheduler(scheduler: Any, handlers: Sequence[DenoiseHandler]) -> Iterator[None]:
    """Make the scheduler an instance of a class of the same name whose `step` runs the handlers.

    A copy of the scheduler has its class, so it is watched, too. At the end all get their own class back.
    """
    own: Any = type(scheduler)
    copies: list[weakref.ref[Any]] = []

    def new(cls: type, *_args: Any, **_kwargs: Any) -> Any:
        made = own.__new__(cls)
        copies.append(weakref.ref(made))
        return made

    def around(bound: Any) -> Callable[[DenoiseHandler, CallNext], CallNext]:
        def one(handler: DenoiseHandler, call_next: CallNext) -> CallNext:
            return lambda *args, **kwargs: handler.around_step(call_next, bound, args, kwargs)

        return one

    @functools.wraps(own.step)  # pipelines ask for its parameters
    def step(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return _chain(functools.partial(own.step, self), around(self), handlers)(*args, **kwargs)

    names = ("__module__", "__qualname__", "__doc__")
    attributes = {name: getattr(own, name) for name in names} | {"__new__": new, "step": step}
    watched = type(own.__name__, (own,), attributes)
    scheduler.__class__ = watched
    try:
        yield
    finally:
        for each in (scheduler, *(reference() for reference in copies)):
            if type(each) is watched:
                each.__class__ = own


def _chain(
    innermost: CallNext,
    around: Callable[[DenoiseHandler, CallNext], CallNext],
    handlers: Sequence[DenoiseHandler],
) -> CallNext:
    call = innermost
    for handler in reversed(handlers):
        call = around(handler, call)
    return call
