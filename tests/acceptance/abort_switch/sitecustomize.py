"""Runs at the start of each Python process whose PYTHONPATH has this folder: a fault switch for services.

With ABORT_PROMPT set, a worker aborts when it begins to denoise a job with that prompt, as a driver fault
would make it. No step is done, so that no attempt gets further than the one before.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType
from typing import Any

TARGET = "app.worker.job.run"


def switch_on(module: ModuleType, prompt: str) -> None:
    """Make the module's runs abort at jobs with the prompt."""
    denoise = module.JobRun._denoise

    def faulty(run: Any, *arguments: Any) -> Any:
        if run._job.spec.prompt == prompt:
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.abort()
        return denoise(run, *arguments)

    module.JobRun._denoise = faulty


class Finder(importlib.abc.MetaPathFinder):
    """Finds the target as usual, and changes it when it has been loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != TARGET:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            switch_on(module, os.environ["ABORT_PROMPT"])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "ABORT_PROMPT" in os.environ:
    sys.meta_path.insert(0, Finder())
