"""What fails under `enable` is handed to the VAE's own method: with its settings, its noise and its error."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stream_vaes import build, latents_of
from torch import Tensor

import adaptive
from adaptive.decoding import live_device
from adaptive.decoding.decoder import AdaptiveDecoder, DecodeEvent
from adaptive.planning.planner import Policy
from adaptive.testing import ScriptedProbe

NO_ENGINE = "GET was unable to find an engine to execute this computation"
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2 GiB"
CLIP = (1, 3, 17, 32, 32)


@pytest.fixture(autouse=True)
def _plainly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(live_device, "open_probe", lambda _device, **_options: ScriptedProbe([2**40]))
    with torch.no_grad():
        yield


def failing(layer: Any, message: str, *, at_most: int | None = None) -> list[int]:
    """Sizes of the frames that a layer gets from now on. It fails, `at_most` so many times."""
    attempts: list[int] = []

    def fail(_module: object, args: tuple[Tensor, ...]) -> None:
        if not args[0].is_meta:
            attempts.append(args[0].shape[2])
            if at_most is None or len(attempts) <= at_most:
                raise RuntimeError(message)

    layer.register_forward_pre_hook(fail)
    return attempts


def attempts_of(vae: Any, layer: Any, message: str, call: Any) -> int:
    """How often an enabled VAE tries before its own method does."""
    attempts = failing(layer, message)
    attachment = adaptive.enable(SimpleNamespace(vae=vae))
    with pytest.raises(RuntimeError) as raised:
        call(vae)
    assert (type(raised.value), str(raised.value)) == (RuntimeError, message), "the VAE's own error"
    attachment.detach()
    return len(attempts) - 1


@pytest.mark.parametrize("message", [NO_ENGINE, OUT_OF_MEMORY])
def test_a_decode_that_fails_at_every_size_goes_to_the_vae_s_own_method(message: str) -> None:
    latents = latents_of(build("ltx-noise"), 4)
    vae = build("ltx-noise")
    tries = attempts_of(vae, vae.decoder.conv_in, message, lambda vae: vae.decode(latents))
    assert 2 <= tries <= 12
    vae = build("ltx-noise")
    torch.manual_seed(3)
    expected = vae.decode(latents).sample
    attachment = adaptive.enable(SimpleNamespace(vae=vae))
    failing(vae.decoder.conv_out, message, at_most=tries)
    torch.manual_seed(3)
    assert torch.equal(vae.decode(latents).sample, expected), "with the noise of a decode by itself"
    assert attachment.own_call_reason


@pytest.mark.parametrize("message", [NO_ENGINE, OUT_OF_MEMORY])
def test_an_encode_that_fails_at_every_size_goes_to_the_vae_s_own_method(message: str) -> None:
    clip = torch.rand(CLIP) * 2 - 1
    vae = build("wan-2.1")
    tries = attempts_of(vae, vae.encoder.conv_in, message, lambda vae: vae.encode(clip))
    assert 2 <= tries <= 12
    vae = build("wan-2.1")
    expected = vae.encode(clip).latent_dist.parameters
    attachment = adaptive.enable(SimpleNamespace(vae=vae))
    vae.encode(clip)
    assert attachment.encode_plan is not None
    failing(vae.encoder.conv_in, message, at_most=tries)
    assert torch.equal(vae.encode(clip).latent_dist.parameters, expected)
    assert attachment.encode_plan is None, "that of the clip before is no plan of this one"


@pytest.mark.parametrize("policy", [{"frames_per_chunk": 2}, {"budget_bytes": 2**40}])
def test_where_a_strategy_or_a_budget_is_asked_for_the_failure_is_told(policy: dict[str, Any]) -> None:
    vae = build("ltx-0.9.0")
    failing(vae.decoder.conv_in, NO_ENGINE)
    attachment = adaptive.enable(SimpleNamespace(vae=vae), **policy)
    with pytest.raises(RuntimeError, match=NO_ENGINE):
        vae.decode(latents_of(vae, 4))
    assert attachment.own_call_reason is None


def test_doubtful_failures_in_a_row_are_one_event() -> None:
    vae = build("ltx-0.9.0")
    events: list[DecodeEvent] = []
    attempts = failing(vae.decoder.conv_in, NO_ENGINE, at_most=3)
    decoder = AdaptiveDecoder(vae, policy=Policy(reserve_bytes=0), on_event=events.append)
    for _ in decoder.frames(latents_of(vae, 9)):
        pass
    assert len(attempts) > 3
    assert decoder.report.retries == 3
    (event,) = [each.data for each in events if each.kind == "oom"]
    assert event["doubtful"] is True
    assert NO_ENGINE in event["message"]
