"""With one latent frame at a time the first frames are out early: counted in work, not in seconds."""

from __future__ import annotations

import io
import math
from itertools import count
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor, nn

from adaptive.stream import open_decode
from app.media.video import OPTIONS


@pytest.mark.slow
def test_a_long_ltx_clip_has_frames_to_encode_before_a_third_of_the_work_is_done() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLLTXVideo().eval()  # the published 0.9, without weights
    work = 0

    def note(layer: Any, _inputs: Any, output: Tensor) -> None:
        nonlocal work
        work += output.numel() * layer.in_channels * math.prod(layer.kernel_size)

    for module in vae.decoder.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(note)
    done: list[tuple[int, int]] = []
    with open_decode(vae, torch.empty(1, 128, 16, 2, 2, device="meta")) as stream:
        while not stream.finished:
            stream.step(1)
            done.append((stream.video_frames_done, work))
    assert done[-1][0] == 121
    first = next(share for frames, share in done if frames)
    assert first <= 0.2 * work
    seen = frames_before_the_first_is_encoded()
    encoded = next(share for frames, share in done if frames >= seen)
    assert encoded <= 0.35 * work


def frames_before_the_first_is_encoded() -> int:
    """With one thread: each further one holds another frame back."""
    noise = np.random.default_rng(1)
    with av.open(io.BytesIO(), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=24, options={**OPTIONS, "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in count(1):
            picture = noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            if stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                return number
    raise AssertionError("unreachable")
