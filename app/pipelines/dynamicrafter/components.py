"""The component configurations of the three published models, and components built from them without weights.

Owns the numbers of the architecture. Keys of a component's configuration can be overridden, so that models of
other widths load too. Must not know files or checkpoint keys.
"""

import inspect
from collections.abc import Container, Mapping
from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from app.pipelines.dynamicrafter.defaults import defaults_for
from app.pipelines.dynamicrafter.networks.projector import DynamiCrafterImageProjector
from app.pipelines.dynamicrafter.networks.unet import DynamiCrafterUNet
from app.pipelines.dynamicrafter.scheduler import DynamiCrafterScheduler

ComponentConfigs = dict[str, dict[str, Any]]
PartialConfigs = Mapping[str, Mapping[str, Any]]

# The text and image towers are OpenCLIP ViT-H/14. The last block of the text tower is not used.
_TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
_IMAGE_ENCODER = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "hidden_act": "gelu",
}
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}


def component_configs(resolution: int, overrides: PartialConfigs | None = None) -> ComponentConfigs:
    """The configurations of the published model's components, with `overrides` merged in key by key.

    Raises ValueError for an unknown resolution, component or configuration key.
    """
    defaults = defaults_for(resolution)
    configs: ComponentConfigs = {
        "unet": {
            "sample_size": (defaults.height // 8, defaults.width // 8),
            "learnable_image_scale": defaults.learnable_image_scale,
            "default_fs": defaults.fs,
        },
        "vae": dict(_VAE),
        "text_encoder": dict(_TEXT_ENCODER),
        "image_encoder": dict(_IMAGE_ENCODER),
        "image_projector": {},
        "scheduler": {
            "prediction_type": defaults.prediction_type,
            "timestep_spacing": defaults.timestep_spacing,
            "rescale_betas_zero_snr": defaults.rescale_betas_zero_snr,
            "rescale_base": defaults.rescale_base,
        },
    }
    for component, changes in (overrides or {}).items():
        if component not in configs:
            raise ValueError(f"no component is called {component!r}; use one of {', '.join(configs)}")
        configs[component].update(changes)
    return configs


def described_components(resolution: int) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """(library, class, configuration) of each of the published model's components that have weights.

    Raises ValueError for an unknown resolution.
    """
    configs = component_configs(resolution)
    classes = {
        "unet": ("app.pipelines.dynamicrafter", "DynamiCrafterUNet"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "image_encoder": ("transformers", "CLIPVisionModel"),
        "image_projector": ("app.pipelines.dynamicrafter", "DynamiCrafterImageProjector"),
    }
    return {name: (*place, configs[name]) for name, place in classes.items()}


def empty_components(configs: ComponentConfigs) -> dict[str, nn.Module]:
    """The components that have weights, with all parameters on the meta device.

    Raises ValueError for an unknown setting.
    """
    with init_empty_weights(include_buffers=False):
        return build_components(configs)


def build_components(configs: ComponentConfigs) -> dict[str, nn.Module]:
    """The components that have weights, initialised at random. Raises ValueError for an unknown setting."""
    return {
        "unet": _built(DynamiCrafterUNet, configs["unet"]),
        "vae": _built(AutoencoderKL, configs["vae"]),
        "text_encoder": CLIPTextModel(_clip_config(CLIPTextConfig, configs["text_encoder"])),
        "image_encoder": CLIPVisionModel(_clip_config(CLIPVisionConfig, configs["image_encoder"])),
        "image_projector": _built(DynamiCrafterImageProjector, configs["image_projector"]),
    }


def build_scheduler(configs: ComponentConfigs) -> DynamiCrafterScheduler:
    """The scheduler of the configuration. Raises ValueError for an unknown setting."""
    scheduler: DynamiCrafterScheduler = _built(DynamiCrafterScheduler, configs["scheduler"])
    return scheduler


def _built(cls: type[Any], config: dict[str, Any]) -> Any:
    _refuse_unknown(cls.__name__, config, inspect.signature(cls.__init__).parameters)
    return cls(**config)


def _clip_config(cls: type[Any], config: dict[str, Any]) -> Any:
    _refuse_unknown(cls.__name__, config, cls().to_dict())
    return cls(**config)


def _refuse_unknown(name: str, config: dict[str, Any], known: Container[str]) -> None:
    if unknown := [key for key in config if key not in known]:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}")
