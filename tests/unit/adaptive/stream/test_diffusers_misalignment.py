"""Why framewise decoding in diffusers flickers: from the second tile on, its frames are one place off.

A tile that does not start the video gives one video frame fewer than its share, because the decoder drops
what the first latent frame gives beyond one frame. To realign, the *first* frame of such a tile must go;
diffusers drops the *last*. With weights that look at one frame only, tiles need no overlap and any difference
left is misalignment.
"""

from __future__ import annotations

from typing import Any

import torch
from stream_vaes import build, latents_of, relative_error
from torch import Tensor

from adaptive.stream import decode_whole


def frame_by_frame_vae() -> Any:
    """A decoder whose convolutions look at one frame only."""
    vae = build("ltx-0.9.0")
    with torch.no_grad():
        for module in vae.decoder.modules():
            if isinstance(module, torch.nn.Conv3d) and module.kernel_size[0] == 3:
                module.weight[:, :, [0, 2]] = 0
    return vae


def tiled(vae: Any, latents: Tensor, kept: slice) -> Tensor:
    """Framewise decoding as diffusers does it, but for which frames of later tiles are kept."""
    ratio = vae.temporal_compression_ratio
    size, stride = vae.tile_sample_min_num_frames // ratio, vae.tile_sample_stride_num_frames // ratio
    blend = vae.tile_sample_min_num_frames - vae.tile_sample_stride_num_frames
    tiles = []
    with torch.no_grad():
        for start in range(0, latents.shape[2], stride):
            tile = vae.decoder(latents[:, :, start : start + size + 1])
            tiles.append(tile[:, :, kept] if start else tile)
    parts = []
    for index, tile in enumerate(tiles):
        joined = vae.blend_t(tiles[index - 1], tile, blend) if index else tile
        parts.append(joined[:, :, : stride * ratio + (0 if index else 1)])
    return torch.cat(parts, 2)[:, :, : (latents.shape[2] - 1) * ratio + 1]


def test_framewise_decoding_is_misaligned_by_one_frame_and_dropping_the_first_one_mends_it() -> None:
    vae = frame_by_frame_vae()
    latents = latents_of(vae, 7)
    exact = decode_whole(vae, latents)
    vae.use_framewise_decoding = True
    with torch.no_grad():
        stock = vae.decode(latents).sample
    assert torch.equal(stock, tiled(vae, latents, slice(None, -1)))
    assert relative_error(stock, exact) > 0.1
    assert relative_error(tiled(vae, latents, slice(1, None)), exact) < 1e-5
