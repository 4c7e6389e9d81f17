"""What the library's own work on a card costs: waits, collections of garbage, and the caller's statistics."""

import gc
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended import MIB, Card
from stream_vaes import build, latents_of

import adaptive
from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.device.accelerator import Stopwatch
from adaptive.device.probe import AcceleratorProbe
from adaptive.memory.margins import LearnedMargins

COUNTED = {
    "synchronize": (torch.accelerator, torch.cuda),
    "empty_cache": (torch.accelerator, torch.cuda),
    "reset_peak_memory_stats": (torch.accelerator, torch.cuda),
    "collect": (gc,),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, card: Card) -> Counter[str]:  # noqa: ARG001 - restored first
    """Calls of the functions that wait, collect or reset; clear it where the counting begins."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for name, modules in COUNTED.items():
        for module in modules:
            monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return counts


@pytest.mark.parametrize("frames_per_chunk", [1, 2])
@torch.no_grad()
def test_a_decode_never_waits_for_the_whole_card(
    frames_per_chunk: int, device: str, calls: Counter[str]
) -> None:
    vae = build("ltx-0.9.0").to(device)
    latents = latents_of(vae, 6).to(device)
    policy = adaptive.Policy(frames_per_chunk=frames_per_chunk)
    decoder = AdaptiveDecoder(vae, policy=policy)
    decoder.plan(latents)
    calls.clear()
    list(decoder.frames(latents))
    assert calls["synchronize"] == 0
    assert decoder.report.seconds > 0


def test_a_stopwatch_does_not_wait_for_the_copies_of_another_stream(device: str) -> None:
    source, target = torch.arange(1000.0, device=device), torch.zeros(1000, pin_memory=True)
    copies = torch.cuda.Stream(device)
    watch = Stopwatch(torch.device(device))
    with torch.cuda.stream(copies):
        target.copy_(source, non_blocking=True)
    assert watch.seconds() > 0
    assert target.sum() == 0
    copies.synchronize()


@torch.no_grad()
def test_a_decode_that_fits_in_one_call_collects_nothing_and_keeps_the_cache(
    device: str, calls: Counter[str]
) -> None:
    vae = build("wan-2.1").to(device)
    latents = latents_of(vae, 4).to(device)
    attachment = adaptive.enable(SimpleNamespace(vae=vae))
    vae.decode(latents)
    calls.clear()
    vae.decode(latents)
    attachment.detach()
    assert attachment.report.plan.reason == "fastest"
    assert (calls["empty_cache"], calls["collect"]) == (0, 0)


@torch.no_grad()
def test_memory_is_released_where_one_call_does_not_fit(device: str, card: Card, calls: Counter[str]) -> None:
    vae = build("ltx-0.9.0").to(device)
    latents = latents_of(vae, 6, sides=(8, 8)).to(device)
    decoder = AdaptiveDecoder(vae, policy=adaptive.Policy(reserve_bytes=0))
    batched = decoder.plan(latents)
    card.leave(batched.predicted.upper_bytes - 8 * MIB)
    calls.clear()
    assert decoder.plan(latents).reason != "fastest"
    assert calls["empty_cache"] > 0


@torch.no_grad()
def test_the_peak_that_a_program_counts_stays_its_own(device: str, calls: Counter[str]) -> None:
    vae = build("wan-2.1").to(device)
    latents = latents_of(vae, 4).to(device)
    attachment = adaptive.enable(SimpleNamespace(vae=vae))
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    calls.clear()
    vae.decode(latents)
    peak = torch.cuda.max_memory_allocated(device)
    assert attachment.report.measured_peak_bytes is not None
    assert attachment.report.measured_peak_bytes >= peak - before > 0
    torch.empty(512 * MIB, dtype=torch.uint8, device=device)
    highest = torch.cuda.max_memory_allocated(device)
    vae.decode(latents)
    attachment.detach()
    assert torch.cuda.max_memory_allocated(device) == highest > peak
    assert calls["reset_peak_memory_stats"] == 0
    assert attachment.report.measured_peak_bytes is None  # it is below the program's own peak


@torch.no_grad()
def test_fragmentation_is_learned_only_where_the_cache_did_not_hide_it(device: str) -> None:
    probe = AcceleratorProbe(torch.device(device))
    probe.release()
    probe.reset_peak()
    torch.empty(40 * MIB, dtype=torch.uint8, device=device)
    found = probe.peak()
    assert found is not None
    assert found.complete
    probe.reset_peak()
    torch.empty(30 * MIB, dtype=torch.uint8, device=device)  # from the 40 that are cached now
    found = probe.peak()
    assert found is not None
    assert (found.allocated_bytes, found.complete) == (30 * MIB, False)
    probe.reset_peak()
    torch.empty(60 * MIB, dtype=torch.uint8, device=device)  # the cached segment is of no use to it
    found = probe.peak()
    assert found is not None
    assert found.complete
    assert found.total_bytes >= 60 * MIB + 40 * MIB


@torch.no_grad()
def test_a_decode_from_the_cache_teaches_no_margin(device: str) -> None:
    vae = build("wan-2.1").to(device)
    latents = latents_of(vae, 4).to(device)
    held = torch.empty(256 * MIB, dtype=torch.uint8, device=device)
    del held  # cached now
    residuals = LearnedMargins("cuda:0")
    decoder = AdaptiveDecoder(vae, residuals=residuals)
    list(decoder.frames(latents))
    assert decoder.report.measured_peak_bytes
    assert residuals.to_json() == LearnedMargins("cuda:0").to_json()
