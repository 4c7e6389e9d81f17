"""Puts the device into a process: the compiled half before torch is imported, the Python half right after.

torch asks once, while it is imported, whether there is CUDA, so the answer must be there by then.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from pretended.build import build, torch_folder
from pretended.machine import Card, Machine

_LIBRARIES = ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so", "libtorch.so")
_loaded: ctypes.CDLL | None = None
_visible: list[Card] = []


def load(machine: Machine, *, as_cuda: bool = True) -> None:
    """Register the machine's visible cards now or, if torch is not imported yet, with its import."""
    if as_cuda and "torch" in sys.modules:
        raise RuntimeError("load the pretended card before torch is imported")
    if "torch" in sys.modules:
        _register(machine, as_cuda)
        _install(as_cuda)
    else:
        finder = _WithTorch(lambda: _register(machine, as_cuda), lambda: _install(as_cuda))
        sys.meta_path.insert(0, finder)


def late_copies(index: int = 0) -> int:
    """Copies of the card `index` that nothing has waited for yet."""
    assert _loaded is not None
    return int(_loaded.pretended_late_copies(index))


def visible_cards() -> list[Card]:
    """The cards that this process sees, in the order of their device indices."""
    return _visible


def default_generators() -> tuple[Any, ...]:
    """The cards' default random generators, as `torch.Generator`."""
    import torch

    kind = torch._C._accelerator_getAccelerator().type
    made = []
    for index in range(torch._C._accelerator_hooks_device_count()):
        assert _loaded is not None
        _loaded.pretended_next_generator_is_default()
        made.append(torch.Generator(torch.device(kind, index)))
    return tuple(made)


def _register(machine: Machine, as_cuda: bool) -> None:
    global _loaded
    library = build()
    for name in _LIBRARIES:
        ctypes.CDLL(str(torch_folder() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    _loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    _loaded.pretended_late_copies.restype = ctypes.c_int64
    visible = machine.visible()
    _visible[:] = [machine.cards[number] for number in visible]
    numbers = (ctypes.c_int * len(visible))(*visible)
    failed = _loaded.pretended_start(str(machine.path).encode(), int(as_cuda), numbers, len(visible))
    if failed:
        raise OSError(failed, f"cannot map {machine.path}")


def _install(as_cuda: bool) -> None:
    if as_cuda:
        from pretended import cuda

        cuda.install()
    else:
        from pretended import private

        private.install()


class _WithTorch(importlib.abc.MetaPathFinder):
    """Runs one function before torch is executed, and another after."""

    def __init__(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._before, self._after = before, after

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the interface of importlib
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self._before()
            execute(module)
            self._after()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
