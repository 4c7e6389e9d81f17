"""Pictures of a video that is denoised on a card: a small copy crosses, and the step does not wait for it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from adaptive.denoise.preview.latent_layout import LatentLayout
from adaptive.denoise.preview.pixel_map import PixelMap
from adaptive.denoise.watch import watch
from adaptive.types import LatentShape
from app.artifacts.local_folder import JobArtifacts
from app.worker.denoise.strips import ShownLatents, Strips

CARD = torch.device("cuda", 0)
SHAPE = LatentShape(1, 16, 21, 60, 104)


def test_a_strip_of_a_card_shows_its_latents_and_takes_little_of_its_memory(tmp_path: Path) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4, device=CARD)
    pipe = SimpleNamespace(components={"scheduler": scheduler})
    layout = LatentLayout("scheduler", "channels first", 0, (1.0,) * 16, (0.0,) * 16)
    weights = torch.zeros(17, 12)
    weights[0] = 1.0  # the first channel is the brightness
    shown = ShownLatents(layout, PixelMap(weights, 2, 1.0), SHAPE, list(range(21)))
    told: list[dict[str, Any]] = []
    strips = Strips(pipe, JobArtifacts(tmp_path), shown, lambda _kind, data: told.append(dict(data)), 0.0)
    clean = torch.zeros(1, 16, 21, 60, 104, device=CARD)
    clean[:, 0, 10] = 0.5
    noise = torch.randn(clean.shape).to(CARD)
    sigma = float(scheduler.sigmas[0])
    noisy = (1 - sigma) * clean + sigma * noise
    velocity = noise - clean

    def bytes_of(call: Callable[[], object]) -> int:
        torch.cuda.reset_peak_memory_stats(CARD)
        before = torch.cuda.memory_allocated(CARD)
        call()
        return torch.cuda.max_memory_allocated(CARD) - before

    def step() -> None:
        scheduler.step(velocity, scheduler.timesteps[0], noisy, return_dict=False)

    alone = bytes_of(step)
    scheduler._step_index = None
    with watch(pipe, [strips]):
        assert bytes_of(step) <= max(alone, 10 * 2**20)
    strips.step_done(1, 4)
    strips.close()
    assert told == [{"step": 1, "steps": 4, "frames": [0, 19, 4, 9, 14]}]
    levels = [Image.open(tmp_path / f"preview-{number:02}.jpg").convert("L") for number in range(5)]
    assert [round(each.resize((1, 1)).getpixel((0, 0)) / 255, 1) for each in levels] == [
        0.5,
        0.5,
        0.5,
        0.7,
        0.5,
    ]
