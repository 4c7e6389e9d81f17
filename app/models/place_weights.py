"""Carries out a weight placement with diffusers' own mechanisms. Which placement it is,
`adaptive.planning.planner` decides.

Knows how each kind is done on a pipeline, and nothing of sizes, jobs or files.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

# The components that run once a step; everything else with weights runs before them or is the VAE.
TRANSFORMERS = ("transformer", "transformer_2")
DENOISERS = (*TRANSFORMERS, "unet")


def place(
    pipe: Any, kind: str, device: torch.device, group_offloaded: Sequence[str] = ()
) -> Callable[[], None]:
    """Put the pipeline's weights where the plan says; `kind` and `group_offloaded` are those of a
    `Placement`.

    Returns what to call when the pipeline has run: it brings components that take turns back to the host.
    """
    if kind == "resident" or _is_host(device):
        pipe.to(device)
        return _nothing
    if kind == "group_offload":
        return _in_groups(pipe, device, group_offloaded)
    # The image is encoded by the VAE between prompt and denoising, so in this order each component that comes
    # sends the one before it away. A denoiser outside the chain comes when it is called and shares the device
    # with the VAE.
    in_turn = [*_encoders(pipe), "vae"]
    if kind == "model_offload":
        in_turn += [name for name in DENOISERS if name in pipe.components]
    elif kind != "drop_text_encoder":
        raise ValueError(f"unknown placement {kind!r}")
    pipe.model_cpu_offload_seq = "->".join(in_turn)
    pipe.enable_model_cpu_offload(device=device)
    vacate: Callable[[], None] = pipe.maybe_free_model_hooks
    return vacate


def _in_groups(pipe: Any, device: torch.device, group_offloaded: Sequence[str]) -> Callable[[], None]:
    """Components too large for the device pass through it layer by layer; the others take turns whole."""
    from accelerate import cpu_offload_with_hook
    from diffusers.hooks import apply_group_offloading

    hooks: list[Any] = []
    for name in [*_encoders(pipe), "vae", *(name for name in DENOISERS if name in pipe.components)]:
        if name in group_offloaded:
            apply_group_offloading(
                pipe.components[name],
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=device.type == "cuda",
                low_cpu_mem_usage=True,
            )
        else:
            _, hook = cpu_offload_with_hook(pipe.components[name], device, hooks[-1] if hooks else None)
            hooks.append(hook)

    def vacate() -> None:
        for hook in hooks:
            hook.offload()

    return vacate


def _encoders(pipe: Any) -> list[str]:
    """Components with weights that are neither the VAE nor a denoiser, in the pipeline's own order."""
    return [
        name
        for name, component in pipe.components.items()
        if isinstance(component, torch.nn.Module) and name != "vae" and name not in DENOISERS
    ]


def _is_host(device: torch.device) -> bool:
    """Whether there is no device to move weights to and from."""
    return device.type == "cpu"


def _nothing() -> None:
    """Resident weights stay."""
