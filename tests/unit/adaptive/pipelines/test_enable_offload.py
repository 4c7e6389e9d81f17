"""`adaptive.enable(pipe)` on offloaded pipelines: every hook is called, none is lost, frames are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, CpuOffload
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import GroupOffloadingHook

from adaptive.pipelines.enable import enable

CPU = torch.device("cpu")


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe: Any) -> None:
    """As `enable_sequential_cpu_offload`, whose device "cpu:0" is not "cpu" to accelerate."""
    for component in (pipe.transformer, pipe.vae):
        cpu_offload(component, CPU, offload_buffers=len(component._parameters) > 0)


def group_offload(pipe: Any) -> None:
    apply_group_offloading(pipe.vae, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


@contextmanager
def seen_by(hook_class: type, vae: Any) -> Iterator[set[str]]:
    """Names of the VAE's modules whose hook of that class runs within."""
    names = {module: name for name, module in vae.named_modules()}
    seen: set[str] = set()
    original = hook_class.pre_forward

    def counted(self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        if module in names:
            seen.add(names[module])
        return original(self, module, *args, **kwargs)

    with patch.object(hook_class, "pre_forward", counted):
        yield seen


def hooks(vae: Any) -> dict[str, list[str]]:
    """What hangs on the modules; diffusers itself hangs a new object there after each call of a pipeline."""
    kinds = ("_hf_hook", "_diffusers_hook")
    return {
        name: [type(vars(module)[kind]).__name__ for kind in kinds if kind in vars(module)]
        for name, module in vae.named_modules()
    }


@pytest.mark.parametrize(
    ("offload", "hook_class"),
    [
        (model_offload, CpuOffload),
        (sequential_offload, AlignDevicesHook),
        (group_offload, GroupOffloadingHook),
    ],
)
def test_offloading_passes_unchanged_through_an_enabled_pipeline_and_after_it(
    pipe: Any,
    request_arguments: dict[str, Any],
    offload: Callable[[Any], None],
    hook_class: type,
) -> None:
    with seen_by(hook_class, pipe.vae) as seen:  # before the hooks are there: some keep their methods
        offload(pipe)

        def made() -> tuple[Any, set[str]]:
            seen.clear()
            request_arguments["generator"].manual_seed(7)
            return pipe(**request_arguments, output_type="pt").frames, set(seen)

        expected, by_itself = made()
        before = hooks(pipe.vae)
        assert any(before.values())
        assert by_itself
        attachment = enable(pipe, frames_per_chunk=2)
        frames, enabled = made()
        assert attachment.report.strategy == "chunked"
        assert (frames - expected).abs().max() < 1e-4
        assert enabled >= by_itself
        assert hooks(pipe.vae) == before
        attachment.detach()
        frames, after = made()
        assert torch.equal(frames, expected)
        assert after == by_itself
        assert hooks(pipe.vae) == before
