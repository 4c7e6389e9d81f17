"""Names and shapes of the tensors of published models in each key layout, for the recognition of files.

The keys come from diffusers' and transformers' own classes on the meta device, with the published
configurations. `original_keys.py` makes the other layouts of them.

`python tests/weight_keys.py` writes them into the package; a test compares the two.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from original_keys import (
    ORIGINALS,
    Keys,
    hunyuanvideo15_keys,
    hunyuanvideo_comfyui_keys,
    llama_cpp_keys,
    original_keys,
    umt5_keys,
    wan22_vae_keys,
)
from torch import nn

from app.models.components import Component, build_component
from app.models.files.architectures.key_lists import PATH, packed

CONFIGURATIONS = Path(__file__).parents[1] / "app" / "pipelines" / "published" / "configurations"
_LTX_VAE_095 = {
    "block_out_channels": [128, 256, 512, 1024, 2048],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "decoder_block_out_channels": [256, 512, 1024],
    "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5],
    "spatio_temporal_scaling": [True] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3,
    "decoder_inject_noise": [False] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "upsample_residual": [True] * 3,
    "upsample_factor": [2] * 3,
    "timestep_conditioning": True,
}
_LTX_VAE_091 = {
    "decoder_block_out_channels": [256, 512, 1024],
    "decoder_layers_per_block": [5, 6, 7, 8],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [True, True, True, False],
    "upsample_residual": [True] * 3,
    "upsample_factor": [2] * 3,
    "timestep_conditioning": True,
}
# List: a published configuration, its component, and the values of variants that are not shipped.
COMPONENTS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "ltx-2b": ("ltx-video", "transformer", {}),
    "ltx-13b": (
        "ltx-video",
        "transformer",
        {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096},
    ),
    "ltx-2": ("ltx-2", "transformer", {}),
    "wan-1.3b": (
        "wan22-i2v-a14b",
        "transformer",
        {"in_channels": 16, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    "wan-14b": ("wan22-i2v-a14b", "transformer", {"in_channels": 16}),
    "wan-14b-i2v": ("wan22-i2v-a14b", "transformer", {}),
    "wan-14b-i2v-clip": ("wan21-i2v-480p", "transformer", {}),
    "wan-14b-flf": ("wan21-i2v-480p", "transformer", {"pos_embed_seq_len": 514}),
    "wan-5b": ("wan22-ti2v-5b", "transformer", {}),
    "hunyuanvideo": ("hunyuanvideo-i2v", "transformer", {}),
    "hunyuanvideo-33ch": (
        "hunyuanvideo-i2v",
        "transformer",
        {"in_channels": 33, "guidance_embeds": False, "image_condition_type": "latent_concat"},
    ),
    "hunyuanvideo15": ("hunyuanvideo15-i2v-480p", "transformer", {}),
    "cogvideox-5b-i2v": ("cogvideox-5b-i2v", "transformer", {}),
    "svd": ("svd-xt", "unet", {}),
    "t5-xxl": ("ltx-video", "text_encoder", {}),
    "umt5-xxl": ("wan21-i2v-480p", "text_encoder", {}),
    "clip-l": ("hunyuanvideo-i2v", "text_encoder_2", {}),
    "llama-8b": ("hunyuanvideo-i2v", "text_encoder", {}),
    "qwen-7b": ("hunyuanvideo15-i2v-480p", "text_encoder", {}),
    "gemma-12b": ("ltx-2", "text_encoder", {}),
    "clip-h": ("svd-xt", "image_encoder", {}),
    "siglip": ("hunyuanvideo15-i2v-480p", "image_encoder", {}),
    "ltx-vae-0.9": ("ltx-video", "vae", {}),
    "ltx-vae-0.9.1": ("ltx-video", "vae", _LTX_VAE_091),
    "ltx-vae-0.9.5": ("ltx-video", "vae", _LTX_VAE_095),
    "ltx2-vae": ("ltx-2", "vae", {}),
    "ltx2-audio-vae": ("ltx-2", "audio_vae", {}),
    "wan21-vae": ("wan21-i2v-480p", "vae", {}),
    "wan22-vae": ("wan22-ti2v-5b", "vae", {}),
    "hunyuanvideo-vae": ("hunyuanvideo-i2v", "vae", {}),
    "hunyuanvideo15-vae": ("hunyuanvideo15-i2v-480p", "vae", {}),
    "cogvideox-vae": ("cogvideox-5b-i2v", "vae", {}),
    "svd-vae": ("svd-xt", "vae", {}),
}
_CUT = {  # the part of a multimodal model that the pipeline needs, without the prefix
    "llama-8b": "model.language_model.",
    "gemma-12b": "model.language_model.",
    "clip-h": "vision_model.",
}

_TIED = ("encoder.embed_tokens.weight",)  # the same tensor as `shared.weight`, stored once


def module(name: str) -> nn.Module:
    """The model of a list, on the meta device."""
    source, part, changes = COMPONENTS[name]
    document = json.loads((CONFIGURATIONS / f"{source}.json").read_text(encoding="utf-8"))
    described = document["components"][part]
    with torch.device("meta"):
        made: nn.Module = build_component(Component(*described["class"], {**described["config"], **changes}))
    return made


def library_keys(name: str) -> Keys:
    """Names and shapes as diffusers or transformers save them."""
    keys = {key: tuple(value.shape) for key, value in module(name).state_dict().items()}
    start = _CUT.get(name, "")
    return {
        key.removeprefix(start): shape
        for key, shape in keys.items()
        if key.startswith(start) and key not in _TIED
    }


def all_lists() -> dict[str, dict[str, Keys]]:
    """For each list its layouts, and for each layout the shapes by name."""
    found = {}
    for name in COMPONENTS:
        keys = library_keys(name)
        found[name] = {"diffusers": keys}
        if name in ORIGINALS:
            found[name]["original"] = original_keys(name, keys)
        if name == "wan22-vae":
            found[name]["original"] = wan22_vae_keys(keys)
        if name == "hunyuanvideo15":
            found[name]["original"] = hunyuanvideo15_keys(keys)
        elif name.startswith("hunyuanvideo") and "original" in found[name]:
            found[name]["comfyui"] = hunyuanvideo_comfyui_keys(found[name]["original"])
        if name == "umt5-xxl":
            found[name]["original"] = umt5_keys(keys)
        if name in ("t5-xxl", "umt5-xxl", "llama-8b", "gemma-12b", "qwen-7b"):
            found[name]["llama.cpp"] = llama_cpp_keys(name, keys)
    return found


def document() -> str:
    """The content of the package's file: one line a layout."""
    lists = {
        name: {layout: packed(keys) for layout, keys in layouts.items()}
        for name, layouts in all_lists().items()
    }
    lines = [
        f"{json.dumps(name)}:{{\n"
        + ",\n".join(
            f"{json.dumps(layout)}:{json.dumps(keys, separators=(',', ':'))}"
            for layout, keys in layouts.items()
        )
        + "\n}"
        for name, layouts in lists.items()
    ]
    return "{" + ",\n".join(lines) + "}\n"


if __name__ == "__main__":
    PATH.write_text(document(), encoding="utf-8")
