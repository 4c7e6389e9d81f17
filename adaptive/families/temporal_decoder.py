"""AutoencoderKLTemporalDecoder (Stable Video Diffusion): norms over all frames, so exactness takes a layer
sweep.

Pipelines decode `decode_chunk_size` frames at a time as if each chunk were a video of its own, which changes
the result. Here the whole video is one: layer by layer, with activations in host memory, a few frames on the
device. Encoding looks at one frame at a time. Latents are `[B*F, C, h, w]` with `num_frames`, as the VAE
takes them, or `[B, C, F, h, w]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from adaptive.errors import UnsupportedVae
from adaptive.families.kl import encode_frames, frames_encode_engine
from adaptive.families.shared.family import Family
from adaptive.types import VaeTraits

if TYPE_CHECKING:
    from torch import Tensor

    from adaptive.stream.engines.engine import Engine, State


class TemporalDecoderFamily(Family):
    """AutoencoderKLTemporalDecoder."""

    name = "temporal_decoder"
    folds_frames = True
    parks_activations = True

    def traits(self, vae_class: str, config: Mapping[str, Any]) -> VaeTraits:
        """Every block but the last doubles both sides; time is left as it is."""
        return VaeTraits(
            family=self.name,
            vae_class=vae_class,
            latent_channels=config.get("latent_channels", 4),
            spatial_ratio=2 ** (len(config.get("block_out_channels", (64,))) - 1),
            temporal_ratio=1,
            first_frame_alone=False,
            exact_streaming=True,
            frames_independent=False,
            chunks_apart=True,  # as pipelines do with their `decode_chunk_size`
        )

    def as_video(self, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """`[B*F, C, h, w]` and `num_frames` are B videos of F frames."""
        if latents.ndim != 4:
            return super().as_video(latents, kwargs)
        frames = kwargs.get("num_frames") or latents.shape[0]
        return latents.reshape(-1, frames, *latents.shape[1:]).transpose(1, 2)

    def decode_whole(self, vae: Any, latents: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One call on all frames folded into the batch, and unfolded again."""
        video = self.as_video(latents, kwargs)
        folded = _folded(video)
        frames: Tensor = vae.decode(folded, num_frames=video.shape[2], return_dict=False)[0]
        return _unfolded(frames, video.shape[0])

    def decode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """A sweep in the first step, frames from then on; weights must be on the device while it runs."""
        unknown = set(kwargs) - {"num_frames"}
        offloaded = {"_hf_hook", "_diffusers_hook"}  # by layers: norms are computed here, not called
        if unknown or any(offloaded & vars(module).keys() for module in vae.decoder.modules()):
            raise UnsupportedVae(type(vae).__name__, "layer sweeps with these arguments or offloaded layers")
        return _sweep_engine(vae)

    def encode_engine(self, vae: Any, kwargs: Mapping[str, Any]) -> Engine:
        """Calls of the VAE itself, on some frames each."""
        return frames_encode_engine(vae, kwargs)

    def encode_whole(self, vae: Any, video: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """One call on all frames folded into the batch, and unfolded again."""
        return encode_frames(vae, video, kwargs)


def _sweep_engine(vae: Any) -> Engine:
    decoder = vae.decoder

    class Sweep:
        """All latents go in with the first step, whose limit is how many frames are on the device at once."""

        def take(self, position: int, wanted: int, total: int) -> int:  # noqa: ARG002 - all or none
            """Latents are small: all of them at once."""
            return total - position

        def advance(
            self,
            state: State,
            chunk: Tensor,
            *,
            limit: int,
            ended: bool,  # noqa: ARG002 - all are fed at once
        ) -> tuple[Tensor | None, State]:
            """The last layer, a convolution over time, runs as frames are asked for."""
            state = state or {"reel": _swept(decoder, chunk, limit), "next": 0}
            reel, start = state["reel"], state["next"]
            stop = min(len(reel), start + limit)
            first = max(0, start - 1)
            window = reel.frames(first, min(len(reel), stop + 1))
            frames: Tensor = decoder.time_conv_out(window)[:, :, start - first : stop - first].clone()
            return frames, {"reel": reel, "next": stop}

    return Sweep()


def _swept(decoder: Any, latents: Tensor, size: int) -> Any:
    """Reel of what the last convolution over time takes."""
    from adaptive.stream.engines.sweep import HostFrames, temporal_block

    starts = range(0, latents.shape[2], size)
    chunks: Iterable[Tensor] = (latents[:, :, start : start + size] for start in starts)
    for before, block in _blocks(decoder):
        chunks = _each(chunks, [*before, partial(block.spatial_res_block, temb=None)])
        chunks = temporal_block(chunks, block.temporal_res_block, block.time_mixer, latents.device, size)
    reel = HostFrames(latents.device)
    for chunk in _each(chunks, [*_tail(decoder), decoder.conv_norm_out, decoder.conv_act, decoder.conv_out]):
        reel.append(chunk)
        del chunk
    return reel


Layer = Callable[..., "Tensor"]


def _blocks(decoder: Any) -> Iterator[tuple[list[Layer], Any]]:
    """Every spatio-temporal block in order, each with the per-frame layers before it."""
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


def _tail(decoder: Any) -> list[Layer]:
    return list(decoder.up_blocks[-1].upsamplers or [])


def _each(chunks: Iterable[Tensor], layers: list[Layer]) -> Iterator[Tensor]:
    """Run per-frame layers over a video given in chunks."""
    for chunk in chunks:
        yield _unfolded(reduce(lambda frames, layer: layer(frames), layers, _folded(chunk)), chunk.shape[0])
        del chunk


def _folded(video: Tensor) -> Tensor:
    """`[B, C, n, H, W]` to `[B*n, C, H, W]`."""
    return video.transpose(1, 2).flatten(0, 1)


def _unfolded(frames: Tensor, batch: int) -> Tensor:
    """`[B*n, C, H, W]` to `[B, C, n, H, W]`."""
    return frames.reshape(batch, -1, *frames.shape[1:]).transpose(1, 2)


FAMILY = TemporalDecoderFamily()
