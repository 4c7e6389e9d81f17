"""Decodes and encodes of every family on a card: their frames, their memory, and what they survive."""

import gc
import random
from typing import Any

import pytest
import torch
from pretended import Card
from stream_property import ENCODED, encoded, video_of
from stream_vaes import CONFIGS, build, kwargs_of, latents_of, relative_error, streamed
from torch import Tensor

from adaptive import predict_peak, stream_decode
from adaptive.decoding.decoder import AdaptiveDecoder
from adaptive.decoding.encoder import AdaptiveEncoder, encode
from adaptive.decoding.events import DecodeEvent
from adaptive.stream import decode_whole

SINGLE = 2e-5  # relative, of sums in another order
# Predicted as with fused attention, as it is on CUDA; here torch's attention materialises its weights.
ATTENTION = {"hunyuanvideo-1.5": 1.06, "hunyuanvideo-1.0": 1.03, "kl": 1.19}
# A curve over sizes of the picture predicts the padded copies of its convolutions.
PADDED_COPIES = {"mochi": 1.04}
# Of each family the configuration that is decoded fastest.
FAMILIES = tuple(
    name
    for name in CONFIGS
    if name not in ("ltx-0.9.1", "ltx-0.9.5", "ltx-noise", "ltx-causal", "ltx2", "wan-2.2")
)
MOST_OVER = {**dict.fromkeys(CONFIGS, 1.01), "svd": 1.011, **ATTENTION, **PADDED_COPIES}


def on(device: str, values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) for name, value in values.items()}


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_streamed_decode_on_the_card_gives_the_frames_of_the_host(name: str, device: str) -> None:
    vae = build(name)
    latents, kwargs = latents_of(vae, 3), kwargs_of(vae)
    torch.manual_seed(3)
    expected = decode_whole(vae, latents, **kwargs)
    vae.to(device)
    torch.manual_seed(3)
    found = streamed(vae, latents.to(device), (1, 2), **on(device, kwargs))
    assert found.device == torch.device(device)
    assert relative_error(found.cpu(), expected) < SINGLE


@pytest.mark.parametrize("name", ENCODED)
@torch.no_grad()
def test_a_streamed_encode_on_the_card_gives_the_latents_of_the_host(name: str, device: str) -> None:
    vae, video = build(name), video_of(name, 3)
    expected = encode(vae, video, posterior="parameters")
    found = encoded(vae.to(device), video.to(device), (1, 2))
    assert relative_error(found.cpu(), expected) < SINGLE


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.usefixtures("card")
@torch.no_grad()
def test_a_streamed_decode_takes_the_bytes_that_were_predicted(name: str, device: str) -> None:
    vae = build(name).to(device)
    latents, kwargs = latents_of(vae, 3, sides=(6, 8)).to(device), on(device, kwargs_of(vae))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    for frames in stream_decode(vae, latents, frames_per_chunk=1, **kwargs):
        del frames
    counted = torch.cuda.max_memory_allocated(device) - before
    predicted = predict_peak(vae, tuple(latents.shape), frames_per_chunk=1).live_bytes
    assert 0.99 < counted / predicted < MOST_OVER[name], (counted, predicted)


def recorded(kind: str, events: list[DecodeEvent]) -> list[dict[str, Any]]:
    return [dict(event.data) for event in events if event.kind == kind]


@pytest.mark.parametrize("seed", range(20))
@torch.no_grad()
def test_an_allocation_that_fails_somewhere_in_a_decode_changes_no_pixel(
    seed: int, card: Card, device: str
) -> None:
    draw = random.Random(seed)
    name = draw.choice(["ltx2-noncausal", "wan-2.1", "svd", "kl", "cosmos", "magvit"])
    vae = build(name).to(device)
    latents = latents_of(vae, 4).to(device)
    expected = decode_whole(vae, latents)
    events: list[DecodeEvent] = []
    decoder = AdaptiveDecoder(vae, on_event=events.append)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cat(list(decoder.frames(latents)), 2)
    allocations = torch.cuda.memory_stats()["allocation.all.allocated"] - before
    plan = decoder.plan(latents)
    card.fail_in = draw.randrange(allocations)
    frames = torch.cat(list(decoder.frames(latents, resume_plan=plan)), 2)
    card.fail_in = -1
    assert relative_error(frames, expected) < SINGLE
    assert sum(each["latent_frames"] for each in recorded("chunk", events)) == 2 * latents.shape[2]


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_an_allocation_that_fails_somewhere_in_an_encode_changes_no_latent(
    seed: int, card: Card, device: str
) -> None:
    draw = random.Random(seed)
    name = draw.choice(["wan-2.1", "svd", "cosmos", "magvit"])
    vae, video = build(name).to(device), video_of(name, 3).to(device)

    def encoded_once() -> Tensor:
        return AdaptiveEncoder(vae).encode(video, posterior="parameters")[0]

    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    expected = encoded_once()
    card.fail_in = draw.randrange(torch.cuda.memory_stats()["allocation.all.allocated"] - before)
    found = encoded_once()
    assert relative_error(found, expected) < SINGLE
