"""Traces the bytes that one denoising step needs above the weights, from a denoiser's configuration alone.

Owns how a pipeline calls each denoiser class: the layouts of its inputs, the prompt lengths, whether guidance
doubles the batch. Traces run on meta tensors and need no weights. Must not know placements, jobs or devices.

Longer than 300 lines: there is one function of inputs for each denoiser class.
"""

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from adaptive.memory.live_bytes import trace_peak
from adaptive.types import LatentShape
from app.models.components import Component, build_component
from app.models.requirements import DenoiseCurve

log = logging.getLogger(__name__)

Inputs = Callable[[Any, LatentShape, torch.dtype], dict[str, Any]]
# Traced latent sizes. They are those of real videos, so that the same operation makes the peak; on meta
# tensors their size costs nothing.
TRACED_SIDES = ((16, 24), (32, 48), (64, 96))
TRACED_FRAMES = 9
# A step of an unknown denoiser is taken to hold so many tensors of the size of its widest layer's output.
GUESSED_TENSORS = 8
_TEXT_WIDTHS = (
    "text_dim",
    "text_embed_dim",
    "caption_channels",
    "cross_attention_dim",
    "joint_attention_dim",
)
# A quadratic term below this share of the bytes at the largest traced size is due to rounding and padding.
LEAST_QUADRATIC_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class DenoiserCall:
    """How a pipeline calls its denoiser.

    `guidance_in_batch`: both branches of guidance go in one call. `tracing` is a context in which the
    denoiser runs on meta tensors although it reads values. `config_changes` let the denoiser take any shape
    without changing the peak.
    """

    inputs: Inputs
    guidance_in_batch: bool = True
    tracing: Callable[[], AbstractContextManager[object]] = nullcontext
    config_changes: Mapping[str, Any] = field(default_factory=dict)


def trace_curve(component: Component, latent_channels: int, dtype: str) -> DenoiseCurve | None:
    """Bytes of one step as a function of latent positions.

    A class that `CALLS` does not list is traced by what its `forward` asks for. If that fails, the curve is a
    cautious guess from the widest layer; None if the component cannot be built.
    """
    call = CALLS.get(component.class_name)
    if call is None:
        try:
            return _curve(component, latent_channels, dtype, DenoiserCall(_by_signature(component)))
        except Exception as error:  # its code may expect anything
            log.info("denoiser_not_traced class=%s reason=%r", component.class_name, error)
        try:
            return _guessed(component, dtype)
        except Exception as error:
            log.warning("denoiser_unknown class=%s reason=%r", component.class_name, error)
            return None
    return _curve(component, latent_channels, dtype, call)


def _curve(component: Component, latent_channels: int, dtype: str, call: DenoiserCall) -> DenoiseCurve:
    points = []
    for height, width in TRACED_SIDES:
        shape = LatentShape(1, latent_channels, TRACED_FRAMES, height, width)
        points.append((shape.frames * shape.area, step_bytes(component, shape, dtype, call)))
    return _fitted(points, guidance_in_batch=call.guidance_in_batch)


def _fitted(points: list[tuple[int, int]], *, guidance_in_batch: bool) -> DenoiseCurve:
    """The parabola through three (positions, bytes) points.

    If its quadratic term is negligible, the line through the last two.
    """
    (x0, y0), (x1, y1), (x2, y2) = points
    slope = (y2 - y1) / (x2 - x1)
    square = (slope - (y1 - y0) / (x1 - x0)) / (x2 - x0)
    if square * x2**2 < LEAST_QUADRATIC_SHARE * y2:
        return DenoiseCurve(max(0.0, y2 - slope * x2), slope, 0.0, guidance_in_batch)
    linear = slope - square * (x1 + x2)
    return DenoiseCurve(max(0.0, y2 - linear * x2 - square * x2**2), linear, square, guidance_in_batch)


def step_bytes(component: Component, shape: LatentShape, dtype: str, call: DenoiserCall | None = None) -> int:
    """Traced peak bytes of one step on latents of that shape, called as `CALLS` or `call` says."""
    call = call or CALLS[component.class_name]
    torch_dtype = _dtype(dtype)
    component = replace(component, config={**component.config, **call.config_changes})
    with torch.device("meta"):
        # Some parameters ignore the default device, as `torch.Tensor([...])` in diffusers' AlphaBlender does.
        module = torch.nn.Module.to(build_component(component).eval(), "meta", torch_dtype)
        arguments = call.inputs(module.config, shape, torch_dtype)
        with call.tracing():
            return trace_peak(lambda: module(**arguments, return_dict=False)).peak_bytes


def _guessed(component: Component, dtype: str) -> DenoiseCurve:
    """A cautious guess: `GUESSED_TENSORS` outputs of the widest layer for each patch of positions."""
    with torch.device("meta"):
        module = build_component(component)
    widest = max(weight.shape[0] for weight in module.parameters() if weight.ndim >= 2)
    patch = component.config.get("patch_size") or 1
    side = patch[-1] if isinstance(patch, list | tuple) else patch
    a_position = GUESSED_TENSORS * widest * _dtype(dtype).itemsize / side**2
    return DenoiseCurve(0.0, a_position, 0.0, guidance_in_batch=True)


def _by_signature(component: Component) -> Inputs:
    """Inputs for whatever required arguments `forward` has, by their names in diffusers' denoisers."""

    def inputs(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
        width = next(config[name] for name in _TEXT_WIDTHS if config.get(name))
        known = {
            "hidden_states": _video(config, shape, dtype),
            "sample": _video(config, shape, dtype),
            "timestep": torch.empty(shape.batch, dtype=torch.int64),
            "encoder_hidden_states": torch.empty(shape.batch, 512, width, dtype=dtype),
            "encoder_attention_mask": torch.empty(shape.batch, 512, dtype=torch.bool),
        }
        asked = inspect.signature(_class_of(component).forward).parameters
        needed = {name for name, each in asked.items() if each.default is each.empty and name != "self"}
        return {name: known[name] for name in needed & known.keys() | {"timestep"} & asked.keys()}

    return inputs


def _class_of(component: Component) -> Any:
    return getattr(importlib.import_module(component.library), component.class_name)


def _dtype(name: str) -> torch.dtype:
    found = getattr(importlib.import_module("torch"), name)
    assert isinstance(found, torch.dtype)
    return found


def _video(config: Any, shape: LatentShape, dtype: torch.dtype) -> torch.Tensor:
    """Latents `[B, C, T, h, w]` with the denoiser's `in_channels`, which include conditioning channels."""
    size = (shape.batch, config["in_channels"], shape.frames, shape.height, shape.width)
    return torch.empty(size, dtype=dtype)


def _ltx(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    tokens, text_tokens = shape.frames * shape.height * shape.width, 128
    return {
        "hidden_states": torch.empty(shape.batch, tokens, config["in_channels"], dtype=dtype),
        "encoder_hidden_states": torch.empty(
            shape.batch, text_tokens, config["caption_channels"], dtype=dtype
        ),
        "timestep": torch.empty(shape.batch, tokens),
        "encoder_attention_mask": torch.empty(shape.batch, text_tokens, dtype=torch.bool),
        "num_frames": shape.frames,
        "height": shape.height,
        "width": shape.width,
        "rope_interpolation_scale": (1.0, 1.0, 1.0),
    }


def _ltx2(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    tokens, text_tokens = shape.frames * shape.height * shape.width, 1024
    rate = config["audio_sampling_rate"] / config["audio_hop_length"] / config["audio_scale_factor"]
    # Latents of the sound of a video at 24 frames a second.
    audio_frames = round(shape.frames * config["vae_scale_factors"][0] / 24 * rate)
    sound = (shape.batch, audio_frames, config["audio_in_channels"])
    text = torch.empty(shape.batch, text_tokens, config["caption_channels"], dtype=dtype)
    return {
        "hidden_states": torch.empty(shape.batch, tokens, config["in_channels"], dtype=dtype),
        "audio_hidden_states": torch.empty(sound, dtype=dtype),
        "encoder_hidden_states": text,
        "audio_encoder_hidden_states": text,
        "timestep": torch.empty(shape.batch, tokens),
        "audio_timestep": torch.empty(shape.batch),
        "sigma": torch.empty(shape.batch),
        "encoder_attention_mask": torch.empty(shape.batch, text_tokens, dtype=torch.int64),
        "audio_encoder_attention_mask": torch.empty(shape.batch, text_tokens, dtype=torch.int64),
        "num_frames": shape.frames,
        "height": shape.height,
        "width": shape.width,
        "audio_num_frames": audio_frames,
    }


def _dynamicrafter(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    tokens = config["text_tokens"] + shape.frames * config["image_tokens_per_frame"]
    return {
        "sample": _video(config, shape, dtype),
        "timestep": torch.empty((), dtype=torch.int64),
        "encoder_hidden_states": torch.empty(shape.batch, tokens, config["cross_attention_dim"], dtype=dtype),
    }


def _wan(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    picture = {}
    if config.get("image_dim"):  # CLIP's tokens of a 224 x 224 image; of two where weights are for two
        of_two = config.get("pos_embed_seq_len")
        size = (shape.batch * (2 if of_two else 1), of_two // 2 if of_two else 257, config["image_dim"])
        picture = {"encoder_hidden_states_image": torch.empty(size, dtype=dtype)}
    times: tuple[int, ...] = (shape.batch,)
    if config["in_channels"] == config["out_channels"]:  # the image is a latent frame with its own time step
        _, down, across = config["patch_size"]
        times = (shape.batch, shape.frames * (shape.height // down) * (shape.width // across))
    return {
        "hidden_states": _video(config, shape, dtype),
        "timestep": torch.empty(times, dtype=torch.int64),
        "encoder_hidden_states": torch.empty(shape.batch, 512, config["text_dim"], dtype=dtype),
        **picture,
    }


def _cogvideox(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    patch_time = config.get("patch_size_t") or 1
    patch, head = config["patch_size"], config["attention_head_dim"]
    frames = -(-shape.frames // patch_time) * patch_time  # the pipeline pads to whole patches
    tokens = frames // patch_time * (shape.height // patch) * (shape.width // patch)
    rotary = (torch.empty(tokens, head), torch.empty(tokens, head))
    text_tokens = config["max_text_seq_length"]
    size = (shape.batch, frames, config["in_channels"], shape.height, shape.width)
    return {
        "hidden_states": torch.empty(size, dtype=dtype),
        "timestep": torch.empty(shape.batch, dtype=torch.int64),
        "encoder_hidden_states": torch.empty(shape.batch, text_tokens, config["text_embed_dim"], dtype=dtype),
        "image_rotary_emb": rotary if config["use_rotary_positional_embeddings"] else None,
        **({"ofs": torch.empty(shape.batch, dtype=dtype)} if config.get("ofs_embed_dim") else {}),
    }


def _svd(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    width = config["cross_attention_dim"]
    size = (shape.batch, shape.frames, config["in_channels"], shape.height, shape.width)
    return {
        "sample": torch.empty(size, dtype=dtype),
        "timestep": torch.empty(()),
        "encoder_hidden_states": torch.empty(shape.batch, 1, width, dtype=dtype),
        "added_time_ids": torch.empty(shape.batch, 3, dtype=dtype),
    }


def _hunyuan(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    text_tokens = 256
    guided = {"guidance": torch.empty(shape.batch, dtype=dtype)} if config.get("guidance_embeds") else {}
    return {
        "hidden_states": _video(config, shape, dtype),
        "timestep": torch.empty(shape.batch, dtype=torch.int64),
        "encoder_hidden_states": torch.empty(shape.batch, text_tokens, config["text_embed_dim"], dtype=dtype),
        "encoder_attention_mask": torch.empty(shape.batch, text_tokens, dtype=torch.bool),
        "pooled_projections": torch.empty(shape.batch, config["pooled_projection_dim"], dtype=dtype),
        **guided,
    }


def _hunyuan15(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    # Tokens of Qwen, of ByT5, and of SigLIP for a 384 x 384 image.
    text_tokens, glyphs, image_tokens = 1000, 256, 729
    return {
        "hidden_states": _video(config, shape, dtype),
        "timestep": torch.empty(shape.batch, dtype=dtype),
        "encoder_hidden_states": torch.empty(shape.batch, text_tokens, config["text_embed_dim"], dtype=dtype),
        "encoder_attention_mask": torch.ones(shape.batch, text_tokens, dtype=torch.int64),
        "encoder_hidden_states_2": torch.empty(shape.batch, glyphs, config["text_embed_2_dim"], dtype=dtype),
        "encoder_attention_mask_2": torch.ones(shape.batch, glyphs, dtype=torch.int64),
        "image_embeds": torch.ones(shape.batch, image_tokens, config["image_embed_dim"], dtype=dtype),
    }


class _AllTokensValid(TorchFunctionMode):
    """Lets masks index meta tensors, which have no values: a mask selects all, its inverse nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__bool__:
            return False
        if func is torch.Tensor.__getitem__ and getattr(args[1], "dtype", None) is torch.bool:
            return args[0][:0] if hasattr(args[1], "selects_nothing") else args[0]
        result = func(*args, **(kwargs or {}))
        if func in (torch.Tensor.__invert__, torch.bitwise_not):
            result.selects_nothing = True
        return result


def _photo_pan(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    return {"hidden_states": _video(config, shape, dtype), "timestep": torch.empty(shape.batch)}


def _motion(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    size = (shape.batch * shape.frames, 77, config["cross_attention_dim"])
    return {
        "sample": _video(config, shape, dtype),
        "timestep": torch.empty((), dtype=torch.int64),
        "encoder_hidden_states": torch.empty(size, dtype=dtype),
    }


def _i2vgen(config: Any, shape: LatentShape, dtype: torch.dtype) -> dict[str, Any]:
    width = config["cross_attention_dim"]
    return {
        "sample": _video(config, shape, dtype),
        "timestep": torch.empty((), dtype=torch.int64),
        "fps": torch.empty(shape.batch, dtype=torch.int64),
        "image_latents": _video(config, shape, dtype),
        "image_embeddings": torch.empty(shape.batch, width, dtype=dtype),
        "encoder_hidden_states": torch.empty(shape.batch, 77, width, dtype=dtype),
    }


CALLS: Mapping[str, DenoiserCall] = {
    "CogVideoXTransformer3DModel": DenoiserCall(
        _cogvideox, config_changes={"use_learned_positional_embeddings": False}
    ),
    "DynamiCrafterUNet": DenoiserCall(_dynamicrafter),
    "HunyuanVideo15Transformer3DModel": DenoiserCall(
        _hunyuan15, guidance_in_batch=False, tracing=_AllTokensValid
    ),
    "HunyuanVideoTransformer3DModel": DenoiserCall(_hunyuan, guidance_in_batch=False),
    "I2VGenXLUNet": DenoiserCall(_i2vgen),
    "LTX2VideoTransformer3DModel": DenoiserCall(_ltx2),
    "LTXVideoTransformer3DModel": DenoiserCall(_ltx),
    "PhotoPanDenoiser": DenoiserCall(_photo_pan, guidance_in_batch=False),
    "SkyReelsV2Transformer3DModel": DenoiserCall(_wan, guidance_in_batch=False),
    "UNetMotionModel": DenoiserCall(_motion),
    "UNetSpatioTemporalConditionModel": DenoiserCall(_svd),
    "WanTransformer3DModel": DenoiserCall(_wan, guidance_in_batch=False),
}
