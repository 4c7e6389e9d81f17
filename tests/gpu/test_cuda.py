"""A first look at a real card: what is tested elsewhere with scripts and stubs, on CUDA and the real driver.

    python -m pytest tests/gpu

Skips where torch finds no card.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.device.gpu_processes import gpu_memory_users
from adaptive.device.nvml import Nvml
from adaptive.device.out_of_memory import is_out_of_memory
from adaptive.device.probe import AcceleratorProbe
from adaptive.planning.planner import Policy
from adaptive.stream import decode_whole
from adaptive.testing import small_ltx_vae
from adaptive.types import VideoShape
from app.models.place_weights import place
from app.pipelines import tiny
from app.worker.frame_transfer import FrameTransfer, to_pixels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
MIB = 2**20


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture
def probe() -> AcceleratorProbe:
    return AcceleratorProbe(torch.device("cuda", 0))


def test_the_probe_sees_what_torch_takes_and_gives_back(
    probe: AcceleratorProbe, device: torch.device
) -> None:
    probe.release()
    before = probe.read()
    held = torch.empty(512 * MIB, dtype=torch.uint8, device=device)
    during = probe.read()
    assert before.source == "nvml"
    assert before.free_bytes - during.free_bytes == pytest.approx(512 * MIB, abs=64 * MIB)
    assert during.own_bytes - before.own_bytes == pytest.approx(512 * MIB, abs=64 * MIB)
    del held
    assert probe.read().reusable_bytes >= 448 * MIB  # torch keeps it, and it counts as free
    probe.release()
    assert probe.read().free_bytes == pytest.approx(before.free_bytes, abs=64 * MIB)


def test_a_peak_is_what_was_allocated_above_the_reset(probe: AcceleratorProbe, device: torch.device) -> None:
    probe.reset_peak()
    held = torch.empty(256 * MIB, dtype=torch.uint8, device=device)
    del held
    peak = probe.peak()
    assert peak is not None
    assert peak.allocated_bytes == pytest.approx(256 * MIB, abs=4 * MIB)


def test_an_allocation_beyond_the_card_is_an_out_of_memory(device: torch.device) -> None:
    total = torch.cuda.get_device_properties(device).total_memory
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2 * total, dtype=torch.uint8, device=device)
    assert is_out_of_memory(caught.value)


def test_memory_is_attributed_to_somebody(probe: AcceleratorProbe) -> None:
    gpu = Nvml().devices()[0]
    holders = gpu_memory_users(gpu, {1: probe.read().own_bytes})
    assert sum(each.used_bytes or 0 for each in holders) > 0


@pytest.mark.parametrize("frames_per_chunk", [None, 1, 2, 3])
def test_a_decode_on_the_card_gives_the_frames_of_the_host(
    device: torch.device, frames_per_chunk: int | None
) -> None:
    vae = small_ltx_vae()
    latents = torch.randn(1, 8, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = decode_whole(vae, latents)
    vae.to(device)
    decoder = AdaptiveDecoder(vae, policy=Policy(frames_per_chunk=frames_per_chunk))
    frames = torch.cat([part.cpu() for part in decoder.frames(latents)], 2)
    assert torch.allclose(frames, expected, atol=2e-3)  # TF32 in the card's convolutions
    assert decoder.report.measured_peak_bytes


class Gathered:
    """A video writer that keeps what it is given."""

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def write_later(self, frames: Any, done: Any) -> None:
        self.parts.append(frames().copy())
        done()

    def check(self) -> None:
        """Nothing fails."""


def test_frames_cross_through_page_locked_buffers_unchanged(device: torch.device) -> None:
    writer = Gathered()
    transfer = FrameTransfer(writer, device)  # type: ignore[arg-type]
    chunks = [torch.rand(1, 3, frames, 64, 96, device=device) * 2 - 1 for frames in (3, 1, 8, 5)]
    for chunk in chunks:
        transfer.send(chunk)
    expected = np.concatenate([to_pixels(chunk[0]).cpu().numpy() for chunk in chunks])
    assert np.array_equal(np.concatenate(writer.parts), expected)


@pytest.mark.parametrize("kind", ["resident", "drop_text_encoder", "model_offload", "group_offload"])
def test_every_placement_makes_the_same_video(kind: str, device: torch.device, tmp_path: Path) -> None:
    from diffusers import LTXImageToVideoPipeline
    from PIL import Image

    def made(kind: str) -> torch.Tensor:
        pipe = LTXImageToVideoPipeline.from_pretrained(tiny.build(tmp_path / "tiny"), dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        vacate = place(pipe, kind, device, ("text_encoder", "transformer"))
        shape = VideoShape(17, 64, 64)
        frames: torch.Tensor = pipe(
            image=Image.new("RGB", (64, 64), (200, 40, 90)),
            prompt="a red wall",
            width=shape.width,
            height=shape.height,
            num_frames=shape.frames,
            num_inference_steps=2,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(7),
            output_type="pt",
        ).frames
        vacate()
        return frames.float().cpu()

    assert torch.allclose(made(kind), made("resident"), atol=2e-2)
