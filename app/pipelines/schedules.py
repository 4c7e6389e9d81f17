"""A scheduler other than the one that a pipeline is published with, and steps that are fixed.

Distilled models are made for certain noise levels. Not every pipeline takes these as arguments, but each asks
its scheduler for them. Must not import torch; knows no entries.
"""

import functools
import importlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def use_scheduler(pipe: Any, class_name: str | None, shift: float | None) -> None:
    """Replace the pipeline's scheduler by one of that class, or with that constant shift; None: as it is.

    Raises `ValueError` if diffusers has no such scheduler, or it has no shift.
    """
    if class_name is None and shift is None:
        return
    old = pipe.scheduler
    chosen: Any = type(old)
    if class_name is not None:
        chosen = getattr(importlib.import_module("diffusers"), class_name, None)
        if not hasattr(chosen, "set_timesteps"):
            raise ValueError(f"diffusers has no scheduler {class_name!r}")
    options = _options(chosen, dict(old.config), shift)
    pipe.register_modules(scheduler=chosen.from_config(old.config, **options))


def _options(chosen: Any, config: dict[str, Any], shift: float | None) -> dict[str, Any]:
    names = inspect.signature(chosen.__init__).parameters
    options: dict[str, Any] = {}
    if "use_flow_sigmas" in names and "use_flow_sigmas" not in config:  # the old one is a flow scheduler
        options |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        options["flow_shift"] = config.get("shift", 1.0)
    if shift is None:
        return options
    if "flow_shift" in names:
        return {**options, "flow_shift": shift}
    if "shift" not in names:
        raise ValueError(f"{chosen.__name__} has no shift")
    return {**options, "shift": shift, "use_dynamic_shifting": False}


def check_schedule(pipe: Any, kind: str) -> None:
    """Raise `ValueError` unless the pipeline's scheduler takes `sigmas` or `timesteps`, as `kind` names."""
    if kind not in inspect.signature(pipe.scheduler.set_timesteps).parameters:
        raise ValueError(f"{type(pipe.scheduler).__name__} takes no {kind}")


@contextmanager
def fixed_schedule(
    pipe: Any, *, sigmas: Sequence[float] = (), timesteps: Sequence[float] = ()
) -> Iterator[None]:
    """Let the pipeline's scheduler take these steps, whatever it is asked for; none given: as asked."""
    if not sigmas and not timesteps:
        yield
        return
    scheduler = pipe.scheduler
    set_timesteps = scheduler.set_timesteps
    fixed = {"sigmas": list(sigmas)} if sigmas else {"timesteps": list(timesteps)}

    @functools.wraps(set_timesteps)
    def set_fixed(*args: Any, **kwargs: Any) -> None:
        given = inspect.signature(set_timesteps).bind_partial(*args, **kwargs).arguments
        rest = {
            name: value
            for name, value in given.items()
            if name not in ("num_inference_steps", "sigmas", "timesteps")
        }
        set_timesteps(**rest, **fixed)

    scheduler.set_timesteps = set_fixed
    try:
        yield
    finally:
        del scheduler.set_timesteps
