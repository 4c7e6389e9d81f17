"""What the library does on an accelerator that is not called CUDA. It runs on cards of either name."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended import MIB, Card
from stream_vaes import build, kwargs_of, latents_of, relative_error

from adaptive import NoDevice, enable
from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.decoding.events import DecodeEvent
from adaptive.device.accelerator import random_state, random_states
from adaptive.device.probe import device_name, open_probe
from adaptive.pipelines.recorded_call import RecordedDecode, load_calls, save_calls
from adaptive.stream import decode_whole
from adaptive.stream.self_test import self_test
from app.worker.frame_transfer import FrameTransfer, to_pixels

SINGLE = 2e-5  # relative, of sums in another order


@pytest.fixture
def kind(device: str) -> str:
    return torch.device(device).type


def test_free_memory_is_what_the_device_tells(card: Card, device: str) -> None:
    kept = torch.empty(30 * MIB, dtype=torch.uint8, device=device)
    card.ballast_bytes = 100 * MIB
    reading = open_probe(device).read()
    assert reading.device == device
    assert reading.total_bytes == card.capacity_bytes
    assert reading.free_bytes - reading.reusable_bytes == card.free_bytes
    assert reading.own_bytes >= kept.nbytes


def test_a_device_without_an_index_is_the_current_one(cards: list[Card], kind: str) -> None:
    torch.accelerator.set_device_index(1)
    try:
        cards[1].ballast_bytes = 200 * MIB
        reading = open_probe(kind).read()
    finally:
        torch.accelerator.set_device_index(0)
    assert reading.device == f"{kind}:1"
    assert reading.free_bytes - reading.reusable_bytes == cards[1].free_bytes


@pytest.mark.usefixtures("card")
def test_a_card_that_is_not_there_is_not_found(kind: str) -> None:
    with pytest.raises(NoDevice, match="not_found"):
        open_probe(f"{kind}:7")


def test_memory_that_nothing_tells_is_named_and_the_vae_decodes_by_itself(
    device: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.get_device_module(kind), "mem_get_info")
    with pytest.raises(NoDevice, match="memory_unknown"):
        open_probe(device)
    pipe = type("Pipe", (), {"vae": build("wan-2.1").to(device)})()
    latents = latents_of(pipe.vae, 3).to(device)
    with torch.no_grad():
        expected = pipe.vae.decode(latents).sample
        attached = enable(pipe)
        assert torch.equal(pipe.vae.decode(latents).sample, expected)
    assert "memory_unknown" in str(attached.own_call_reason)


@pytest.mark.usefixtures("card")
def test_costs_are_learned_by_kind_and_name(device: str, kind: str) -> None:
    assert device_name(torch.device(device)).startswith(f"{kind} ")


@pytest.mark.parametrize("name", ["ltx-noise", "ltx2", "wan-2.1"])
@torch.no_grad()
def test_a_decode_that_a_neighbour_squeezes_gives_the_frames_of_one_call(
    name: str, card: Card, device: str
) -> None:
    vae = build(name).to(device)
    latents = latents_of(vae, 5, sides=(6, 8)).to(device)
    kwargs = {name: value.to(device) for name, value in kwargs_of(vae).items()}
    torch.manual_seed(3)
    expected = decode_whole(vae, latents, **kwargs)
    after = random_state(torch.device(device))
    gc.collect()
    torch.accelerator.empty_cache()
    events: list[DecodeEvent] = []
    decoder = AdaptiveDecoder(vae, on_event=events.append)
    decoder.plan(latents)
    card.fail_in = 20
    torch.manual_seed(3)
    frames = torch.cat(list(decoder.frames(latents, **kwargs)), 2)
    assert relative_error(frames, expected) < SINGLE
    assert torch.equal(random_state(torch.device(device)), after)
    assert "oom" in {event.kind for event in events}
    assert decoder.report.measured_peak_bytes is not None


@pytest.mark.usefixtures("card")
@torch.no_grad()
def test_the_self_test_leaves_the_random_numbers_of_the_device(device: str) -> None:
    vae = build("ltx-noise").to(device)
    before = random_states(torch.device(device))
    self_test(vae)
    after = random_states(torch.device(device))
    assert before.keys() == after.keys() == {"cpu", device}
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("card")
def test_a_recorded_call_draws_the_noise_of_the_device_again(device: str, tmp_path: Path) -> None:
    there = torch.device(device)
    generator = torch.Generator(there).manual_seed(9)
    call = RecordedDecode(torch.zeros(1), (), {"generator": generator}, random_states(there))
    save_calls([call], tmp_path / "clip.safetensors")
    expected = torch.rand(4, device=there)
    drawn = torch.rand(4, device=there, generator=torch.Generator(there).manual_seed(9))
    (read,) = load_calls(tmp_path / "clip.safetensors")
    before = random_state(there)
    with read.replaying_noise():
        assert torch.equal(torch.rand(4, device=there), expected)
        assert torch.equal(torch.rand(4, device=there, generator=read.kwargs["generator"]), drawn)
    assert torch.equal(random_state(there), before)


@pytest.mark.usefixtures("card")
def test_frames_reach_the_writer(device: str) -> None:
    written: list[Any] = []

    class Writer:
        def write_later(self, frames: Callable[[], Any], done: Callable[[], None]) -> None:
            written.append(frames().copy())
            done()

    frames = torch.rand(1, 3, 5, 16, 16, device=device) * 2 - 1
    FrameTransfer(Writer(), torch.device(device)).send(frames)  # type: ignore[arg-type]
    assert (torch.from_numpy(written[0]) == to_pixels(frames[0]).cpu()).all()
