"""HunyuanVideo 1.0, whose VAE also serves Kandinsky 5, FramePack and SkyReels: causal convolutions with
replicate padding, group norms over all frames. Serves `AutoencoderKLHunyuanVideo`.

diffusers decodes overlapping tiles of time and blends them, which changes the result. Here the whole video is
one: a layer sweep keeps activations in host memory and a few frames on the device. The attention in the
middle looks back over all latent positions; its key-value cache is on the device while the attention runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.shared.family import Family, refuse_arguments
from adaptive.families.shared.rules import attend_frame_by_frame, pad_in_space
from adaptive.families.shared.sweep_engine import SweepEngine, check_sweep
from adaptive.families.shared.traits import named_ratios

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State


class HunyuanVideoFamily(Family):
    """`AutoencoderKLHunyuanVideo`."""

    name = "hunyuanvideo"
    parks_activations = True
    traits_from_config = named_ratios(
        latent_channels=16,
        spatial_ratio=8,
        temporal_ratio=4,
        mask_numbers=3.5,  # in half precision: the mask is made in single precision, from booleans
    )

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """A layer sweep in the first step, frames from then on; the weights must be on the device."""
        refuse_arguments(vae, kwargs, "decoding")
        check_sweep(vae, _LAYERS, attends=True)
        if any(layer._compiled_call_impl is not None for layer in vae.decoder.modules()):
            raise UnsupportedVae(type(vae).__name__, "layer sweeps through compiled layers")
        return SweepEngine(partial(_sweep, vae), partial(_last_layers, vae.decoder))


_LAYERS = frozenset(
    {
        "HunyuanVideoDecoder3D", "HunyuanVideoMidBlock3D", "HunyuanVideoUpBlock3D",
        "HunyuanVideoResnetBlockCausal3D", "HunyuanVideoUpsampleCausal3D", "HunyuanVideoCausalConv3d",
        "Attention",
    }
)  # fmt: skip


def _sweep(vae: Any, latents: Tensor, size: int) -> State:
    """The parked input of the last norm, and that norm's statistics over all frames."""
    from adaptive.stream.engines.sweep import park_with_statistics

    parked, norm = park_with_statistics(
        _hidden(vae, latents, size), vae.decoder.conv_norm_out, latents.device
    )
    return {"parked": parked, "norm": norm}


def _hidden(vae: Any, latents: Tensor, size: int) -> Iterable[Tensor]:
    """What the last norm takes, in chunks."""
    decoder, device, latents = vae.decoder, latents.device, vae.post_quant_conv(latents)
    starts = range(0, latents.shape[2], size)
    chunks: Iterable[Tensor] = (latents[:, :, start : start + size] for start in starts)
    chunks = _causal(decoder.conv_in, chunks)
    middle = decoder.mid_block
    chunks = _resnet(middle.resnets[0], chunks, size, device)
    for attention, block in zip(middle.attentions, middle.resnets[1:], strict=True):
        if attention is not None:
            chunks = _attention(attention, chunks, size, device)
        chunks = _resnet(block, chunks, size, device)
    for up_block in decoder.up_blocks:
        for block in up_block.resnets:
            chunks = _resnet(block, chunks, size, device)
        for upsampler in up_block.upsamplers or ():
            chunks = _causal(upsampler.conv, _upsampled(chunks, upsampler.upsample_factor))
    return chunks


def _last_layers(decoder: Any, state: State, start: int, stop: int) -> Tensor:
    """Video frames `start` to `stop`, by the last norm and convolution."""
    from adaptive.stream.engines.sweep import replicated

    before = decoder.conv_out.conv.kernel_size[0] - 1
    window = state["parked"].frames(max(0, start - before), stop)
    window = decoder.conv_act(state["norm"].normalized(window))
    window = replicated(window, before + stop - start)
    return _in_space(decoder.conv_out, window)


def _in_space(layer: Any, window: Tensor) -> Tensor:
    """The layer's convolution of a window that is already padded in time."""
    convolved: Tensor = layer.conv(pad_in_space(window, layer.time_causal_padding[:4], layer.pad_mode))
    return convolved


def _causal(layer: Any, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """A causal convolution over a video given in chunks."""
    import torch

    from adaptive.stream.engines.sweep import replicated

    before = layer.conv.kernel_size[0] - 1
    tail = None
    for chunk in chunks:
        window = replicated(chunk, before + chunk.shape[2]) if tail is None else torch.cat([tail, chunk], 2)
        del chunk
        tail = window[:, :, window.shape[2] - before :].clone()
        yield _in_space(layer, window)
        del window


def _resnet(block: Any, chunks: Iterable[Tensor], size: int, device: Any) -> Iterator[Tensor]:
    """A residual block in three sweeps: the first norm's statistics; first norm and convolution with the
    second norm's statistics; the rest.
    """
    from adaptive.stream.engines.sweep import park_with_statistics

    inputs, first = park_with_statistics(chunks, block.norm1, device)
    activated = (block.nonlinearity(first.normalized(piece)) for piece in inputs.pieces(size))
    hidden, second = park_with_statistics(_causal(block.conv1, activated), block.norm2, device)
    activated = (block.dropout(block.nonlinearity(second.normalized(each))) for each in hidden.drained(size))
    for mixed in _causal(block.conv2, activated):
        shortcut = inputs.take(mixed.shape[2])
        if block.conv_shortcut is not None:
            shortcut = block.conv_shortcut(shortcut)  # a kernel of one frame
        yield mixed.add_(shortcut)
        del mixed, shortcut


def _upsampled(chunks: Iterable[Tensor], factors: tuple[int, int, int]) -> Iterator[Tensor]:
    """Nearest neighbours in space and, except for the video's first frame, in time."""
    import torch

    times, rows, columns = (int(factor) for factor in factors)
    first = True
    for chunk in chunks:
        out = chunk[:, :, 1:] if first else chunk
        out = out.repeat_interleave(times, dim=2) if times > 1 else out
        out = torch.cat([chunk[:, :, :1], out], 2) if first else out
        first = False
        del chunk
        yield out.repeat_interleave(rows, dim=3).repeat_interleave(columns, dim=4)
        del out


def _attention(layer: Any, chunks: Iterable[Tensor], size: int, device: Any) -> Iterator[Tensor]:
    """Every frame attends to all positions of itself and of all earlier frames."""
    from adaptive.stream.engines.sweep import park_with_statistics

    inputs, norm = park_with_statistics(chunks, layer.group_norm, device)
    total, past = len(inputs), 0
    cache: list[Tensor] = []
    for piece in inputs.drained(size):
        count, area = piece.shape[2], piece.shape[3] * piece.shape[4]
        tokens = norm.normalized(piece).flatten(2).transpose(1, 2)
        query, *found = (
            project(tokens).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for project in (layer.to_q, layer.to_k, layer.to_v)
        )
        if not cache:
            cache = [part.new_empty(*part.shape[:2], total * area, part.shape[3]) for part in found]
        for part, whole in zip(found, cache, strict=True):
            whole[:, :, past * area : (past + count) * area] = part
        mixed = attend_frame_by_frame(query, *cache, area=area, past=past).transpose(1, 2).flatten(2)
        mixed = layer.to_out[1](layer.to_out[0](mixed)).transpose(1, 2).reshape(piece.shape)
        past += count
        yield (mixed + piece) / layer.rescale_output_factor
        del piece, tokens, query, found, mixed, part


FAMILY = HunyuanVideoFamily()
