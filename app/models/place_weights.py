"""Applies a weight placement to a pipeline with diffusers' own offloading, also in place of an earlier one.

`adaptive.planning.weight_placement` chooses the placement. Must not know sizes, jobs or files.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from adaptive.device.accelerator import has_streams

# The components that run at every step. All others with weights run before them, or are the VAE.
TRANSFORMERS = ("transformer", "transformer_2")
DENOISERS = (*TRANSFORMERS, "unet")
# The names by which diffusers registers the hooks of group offload.
_GROUP_HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")


def place(
    pipe: Any, kind: str, device: torch.device, group_offloaded: Sequence[str] = ()
) -> Callable[[], None]:
    """Place the pipeline's weights; `kind` and `group_offloaded` are those of a `Placement`.

    Weights that are placed already move from where they are; none is read again. The pipeline may be running:
    its next call of a component finds it placed anew.

    Returns a function to call after each run: it moves offloaded components back to the host. Raises
    `ValueError` for an unknown kind.
    """
    _remove_hooks(pipe)
    if kind == "resident" or _is_host(device):
        pipe.to(device)
        return _nothing
    if kind == "group_offload":
        return _in_groups(pipe, device, group_offloaded)
    # Each component in this sequence replaces the one before it on the device. The VAE encodes the image
    # between prompt and denoising. A denoiser outside the sequence moves in when it is called and shares the
    # device with the VAE.
    sequence = [*_encoders(pipe), "vae"]
    if kind == "model_offload":
        sequence += _denoisers(pipe)
    elif kind != "drop_text_encoder":
        raise ValueError(f"unknown placement {kind!r}")
    pipe.model_cpu_offload_seq = "->".join(sequence)
    pipe.enable_model_cpu_offload(device=device)
    return_to_host: Callable[[], None] = pipe.maybe_free_model_hooks
    return return_to_host


def _in_groups(pipe: Any, device: torch.device, group_offloaded: Sequence[str]) -> Callable[[], None]:
    """Offload components too large for the device layer by layer, and move the others in one at a time."""
    from accelerate import cpu_offload_with_hook
    from diffusers.hooks import apply_group_offloading

    hooks: list[Any] = []
    for name in [*_encoders(pipe), "vae", *_denoisers(pipe)]:
        if name in group_offloaded:
            apply_group_offloading(
                pipe.components[name],
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=has_streams(device),
                low_cpu_mem_usage=True,
            )
        else:
            _, hook = cpu_offload_with_hook(pipe.components[name], device, hooks[-1] if hooks else None)
            hooks.append(hook)

    def return_to_host() -> None:
        for hook in hooks:
            hook.offload()

    return return_to_host


def is_grouped(module: torch.nn.Module) -> bool:
    """Whether the module's layers pass through the device in groups."""
    registries: list[Any] = [getattr(each, "_diffusers_hook", None) for each in module.modules()]
    return any(each is not None and each.get_hook(_GROUP_HOOKS[0]) is not None for each in registries)


def _remove_hooks(pipe: Any) -> None:
    """Undo the offloading of an earlier placement."""
    from diffusers.hooks import HookRegistry

    pipe.remove_all_hooks()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module) and is_grouped(part):
            registry = HookRegistry.check_if_exists_or_initialize(part)
            for name in _GROUP_HOOKS:
                registry.remove_hook(name, recurse=True)
            part.to("cpu")  # a pass that failed has left layers on the device


def _encoders(pipe: Any) -> list[str]:
    """Components with weights that are neither the VAE nor a denoiser, in the pipeline's own order."""
    return [
        name
        for name, component in pipe.components.items()
        if isinstance(component, torch.nn.Module) and name != "vae" and name not in DENOISERS
    ]


def _denoisers(pipe: Any) -> list[str]:
    """The denoisers that the pipeline has: an optional one may be None, as Wan 2.1's second transformer."""
    return [name for name in DENOISERS if pipe.components.get(name) is not None]


def _is_host(device: torch.device) -> bool:
    """Whether weights already are in host memory, so that nothing can be offloaded."""
    return device.type == "cpu"


def _nothing() -> None:
    """Nothing to do after a run: resident weights stay on the device."""
