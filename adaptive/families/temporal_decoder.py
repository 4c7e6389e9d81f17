"""Stable Video Diffusion's VAE: an image encoder, and a decoder whose group norms and convolutions span all
frames of the video. Serves `AutoencoderKLTemporalDecoder`.

Pipelines decode `decode_chunk_size` frames at a time as if each chunk were a video, which changes the result.
Here the whole video is one: a layer sweep keeps activations in host memory and a few frames on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from adaptive.families.shared.family import refuse_arguments
from adaptive.families.shared.folded_family import IMAGE_TRAITS, FoldedFamily, folded, unfolded
from adaptive.families.shared.sweep_engine import SweepEngine, check_sweep

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State


class TemporalDecoderFamily(FoldedFamily):
    """`AutoencoderKLTemporalDecoder`."""

    name = "temporal_decoder"
    parks_activations = True
    traits_from_config = replace(IMAGE_TRAITS, chunks_apart=True)  # as pipelines decode them

    def decode_whole(self, vae: Any, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One `vae.decode` of all frames folded into the batch."""
        video = self.as_video(latents, kwargs)
        return super().decode_whole(vae, video, {"num_frames": video.shape[2]})

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """A layer sweep in the first step, frames from then on; the weights must be on the device."""
        refuse_arguments(vae, kwargs.keys() - {"num_frames"}, "decoding")
        check_sweep(vae, _LAYERS)
        return SweepEngine(partial(_sweep, vae.decoder), partial(_last_layer, vae.decoder))


_LAYERS = frozenset(
    {
        "TemporalDecoder", "MidBlockTemporalDecoder", "UpBlockTemporalDecoder", "SpatioTemporalResBlock",
        "TemporalResnetBlock", "ResnetBlock2D", "Upsample2D", "AlphaBlender", "Attention", "Conv2d",
    }
)  # fmt: skip


def _sweep(decoder: Any, latents: Tensor, size: int) -> State:
    """The parked input of the last layer, a convolution over time."""
    from adaptive.stream.engines.sweep import HostFrames, temporal_block

    starts = range(0, latents.shape[2], size)
    chunks: Iterable[Tensor] = (latents[:, :, start : start + size] for start in starts)
    for before, block in _blocks(decoder):
        chunks = _framewise(chunks, [*before, partial(block.spatial_res_block, temb=None)])
        chunks = temporal_block(chunks, block.temporal_res_block, block.time_mixer, latents.device, size)
    last = [*(decoder.up_blocks[-1].upsamplers or ()), decoder.conv_norm_out, decoder.conv_act]
    parked = HostFrames(latents.device)
    for chunk in _framewise(chunks, [*last, decoder.conv_out]):
        parked.append(chunk)
        del chunk
    return {"parked": parked}


def _last_layer(decoder: Any, state: State, start: int, stop: int) -> Tensor:
    """Video frames `start` to `stop`; the convolution needs one neighbour on each side."""
    parked = state["parked"]
    first = max(0, start - 1)
    window = parked.frames(first, min(len(parked), stop + 1))
    frames: Tensor = decoder.time_conv_out(window)[:, :, start - first : stop - first].clone()
    return frames


Layer = Callable[..., "Tensor"]


def _blocks(decoder: Any) -> Iterator[tuple[list[Layer], Any]]:
    """Each spatio-temporal block in order, with the framewise layers before it."""
    middle = decoder.mid_block
    yield [decoder.conv_in], middle.resnets[0]
    for attention, block in zip(middle.attentions, middle.resnets[1:], strict=False):
        yield [attention], block
    dtype = next(decoder.up_blocks.parameters()).dtype
    before: list[Layer] = [lambda frames: frames.to(dtype)]
    for up_block in decoder.up_blocks:
        for block in up_block.resnets:
            yield before, block
            before = []
        before = list(up_block.upsamplers or [])


def _framewise(chunks: Iterable[Tensor], layers: list[Layer]) -> Iterator[Tensor]:
    """Run framewise layers over a video given in chunks."""
    for chunk in chunks:
        yield unfolded(reduce(lambda frames, layer: layer(frames), layers, folded(chunk)), chunk.shape[0])
        del chunk


FAMILY = TemporalDecoderFamily()
