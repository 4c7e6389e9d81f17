"""The adaptive decoder over a real, small VAE; free memory follows a script."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import adaptive
from adaptive.decoding.decoder import AdaptiveDecoder, DecodeEvent
from adaptive.device.probe import CpuProbe
from adaptive.errors import DecodeOutOfMemory, DoesNotFit, UnsupportedVae
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile_trace import profile_of
from adaptive.planning.planner import Policy
from adaptive.testing import ScriptedProbe, small_ltx_vae
from adaptive.types import LatentShape, Strategy

GIB = 2**30
FREE = Policy(reserve_bytes=0)


@pytest.fixture(scope="module")
def vae() -> Any:
    return small_ltx_vae()


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(1, 8, 8, 2, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def batched(vae: Any, latents: Tensor) -> Tensor:
    """diffusers' own decode in one call."""
    with torch.no_grad():
        frames: Tensor = vae.decode(latents, return_dict=False)[0]
    return frames


def needs(vae: Any, latents: Tensor, frames_per_chunk: int) -> int:
    return profile_of(vae).estimate(LatentShape(*latents.shape), frames_per_chunk).upper_bytes


def run(decoder: AdaptiveDecoder, latents: Tensor) -> Tensor:
    return torch.cat(list(decoder.frames(latents)), 2)


def close(frames: Tensor, expected: Tensor) -> bool:
    return frames.shape == expected.shape and torch.allclose(frames, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("fits_chunk", "strategy"), [(8, Strategy.BATCHED), (3, Strategy.CHUNKED), (1, Strategy.PER_FRAME)]
)
def test_three_budgets_give_three_strategies_and_the_same_pixels(
    vae: Any, latents: Tensor, batched: Tensor, fits_chunk: int, strategy: Strategy
) -> None:
    events: list[DecodeEvent] = []
    # With a reserve the device is never full: there a pause of this machine would look like a spill.
    policy = Policy(reserve_bytes=GIB)
    probe = ScriptedProbe([needs(vae, latents, fits_chunk) + 1000 + GIB])
    decoder = AdaptiveDecoder(vae, probe=probe, policy=policy, on_event=events.append)
    assert close(run(decoder, latents), batched)
    report = decoder.report
    assert report.strategy is strategy
    assert report.plan.frames_per_chunk == report.frames_per_chunk == fits_chunk
    assert sum(report.chunk_frames) == 8
    assert report.video_frames == batched.shape[2]
    assert (report.retries, report.exact) == (0, True)
    assert events[0].kind == "plan"
    assert events[0].data["strategy"] == strategy
    done = [event.data["position"] for event in events if event.kind == "chunk"]
    assert done[-1] == 8
    assert done == sorted(done)


def test_a_neighbour_taking_memory_shrinks_the_next_chunk_and_leaving_grows_it_again(
    vae: Any, latents: Tensor, batched: Tensor
) -> None:
    roomy, tight = needs(vae, latents, 4) * 2, needs(vae, latents, 1)
    plan_room = needs(vae, latents, 4)

    def script(read: int) -> int:
        return plan_room if read == 0 else tight if read <= 3 else roomy

    events: list[DecodeEvent] = []
    decoder = AdaptiveDecoder(vae, probe=ScriptedProbe(script), policy=FREE, on_event=events.append)
    assert close(run(decoder, latents), batched)
    replans = [
        (event.data["from"], event.data["to"], event.data["reason"])
        for event in events
        if event.kind == "replan"
    ]
    assert replans[0][0] == 4
    assert replans[0][2] == "memory_fell"
    assert any(reason == "memory_rose" and to > before for before, to, reason in replans)
    assert decoder.report.frames_per_chunk == 1
    assert max(decoder.report.chunk_frames) == 4
    assert decoder.report.retries == 0


@pytest.mark.parametrize("hidden", [True, False])
def test_memory_in_blocks_that_the_decode_itself_has_split_is_not_missed(
    vae: Any, latents: Tensor, hidden: bool
) -> None:
    room = needs(vae, latents, 3)
    gone = room // 2  # in split blocks between the chunks, or taken by a neighbour
    probe = ScriptedProbe([room, room - gone], split_bytes=[1000, 1000 + gone] if hidden else [1000])
    decoder = AdaptiveDecoder(vae, probe=probe, policy=FREE)
    run(decoder, latents)
    assert decoder.report.plan.frames_per_chunk == 3
    assert (decoder.report.frames_per_chunk == 3) is hidden


def test_no_chunk_size_is_announced_once_the_last_latent_frame_was_fed(vae: Any, latents: Tensor) -> None:
    room = needs(vae, latents, 3)
    position = 0

    def note(event: DecodeEvent) -> None:
        nonlocal position
        if event.kind == "replan":
            assert position < latents.shape[2], "a smaller chunk that never comes"
        position = event.data.get("position", position)

    script = ScriptedProbe(lambda _read: room if position < latents.shape[2] else 0)
    decoder = AdaptiveDecoder(vae, probe=script, policy=FREE, on_event=note)
    run(decoder, latents)
    assert decoder.report.frames_per_chunk == 3


def test_memory_that_vanishes_in_the_middle_does_not_end_a_decode(
    vae: Any, latents: Tensor, batched: Tensor
) -> None:
    probe = ScriptedProbe([needs(vae, latents, 3), 0])
    decoder = AdaptiveDecoder(vae, probe=probe, policy=FREE)
    assert close(run(decoder, latents), batched)
    assert decoder.report.frames_per_chunk == 1


def failing_at(fails: Callable[[int], bool], forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    calls = -1

    def conv_out(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if fails(calls):
            raise torch.OutOfMemoryError("scripted")
        return forward(*args, **kwargs)

    return conv_out


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bool]], Any]:
    """A VAE whose `conv_out.conv` runs out of memory at the calls that a rule picks."""

    def make(fails: Callable[[int], bool]) -> Any:
        made = small_ltx_vae()
        inner = made.decoder.conv_out.conv
        monkeypatch.setattr(inner, "forward", failing_at(fails, inner.forward))
        return made

    return make


def test_a_chunk_that_fails_is_repeated_smaller_and_nothing_is_redone(
    fragile: Callable[[Callable[[int], bool]], Any], latents: Tensor, batched: Tensor
) -> None:
    events: list[DecodeEvent] = []
    vae = fragile(lambda call: call == 1)
    decoder = AdaptiveDecoder(
        vae, probe=ScriptedProbe([needs(vae, latents, 4)]), policy=FREE, on_event=events.append
    )
    assert close(run(decoder, latents), batched)
    assert decoder.report.retries == 1
    assert decoder.report.frames_per_chunk < 4
    assert [event.kind for event in events if event.kind in ("oom", "replan")][:2] == ["oom", "replan"]
    assert sum(decoder.report.chunk_frames) == 8


def test_a_batched_decode_that_fails_falls_to_chunks(
    fragile: Callable[[Callable[[int], bool]], Any], latents: Tensor, batched: Tensor
) -> None:
    events: list[DecodeEvent] = []
    decoder = AdaptiveDecoder(
        fragile(lambda call: call == 0), probe=ScriptedProbe([GIB]), policy=FREE, on_event=events.append
    )
    assert close(run(decoder, latents), batched)
    assert decoder.report.plan.strategy is Strategy.BATCHED
    assert decoder.report.strategy is Strategy.CHUNKED
    fallback = next(event for event in events if event.kind == "fallback")
    assert fallback.data == {"from": "batched", "to": "chunked"}


def test_a_failure_and_a_success_are_both_learned(
    fragile: Callable[[Callable[[int], bool]], Any], latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    residuals = LearnedMargins("cpu")
    vae = fragile(lambda call: call == 0)
    before = needs(vae, latents, 8)
    failing = AdaptiveDecoder(vae, probe=ScriptedProbe([before]), policy=FREE, residuals=residuals)
    run(failing, latents)
    after = profile_of(vae).estimate(LatentShape(*latents.shape), 8, residuals).upper_bytes
    assert after > before
    working = AdaptiveDecoder(vae, policy=FREE, residuals=residuals)  # on the real device, which measures
    run(working, latents)
    assert not residuals.to_json()["ltx/float32/batched"]["observations"], "so small a decode is noise"
    monkeypatch.setattr(CpuProbe, "noise_bytes", 0)
    run(working, latents)
    assert residuals.to_json()["ltx/float32/batched"]["observations"]


@pytest.mark.parametrize("strategy", ["auto", "batched", "per_frame"])
def test_when_even_the_smallest_allowed_chunk_fails_twice_the_decode_ends_with_its_numbers(
    fragile: Callable[[Callable[[int], bool]], Any], latents: Tensor, strategy: str
) -> None:
    decoder = AdaptiveDecoder(
        fragile(lambda _: True), probe=ScriptedProbe([GIB]), policy=Policy(strategy=strategy, reserve_bytes=0)
    )
    with pytest.raises(DecodeOutOfMemory) as ended:
        run(decoder, latents)
    assert ended.value.frames_per_chunk == (8 if strategy == "batched" else 1)
    assert ended.value.retries >= 2


def test_the_smallest_chunk_is_tried_again_at_every_place_where_it_fails_once(
    fragile: Callable[[Callable[[int], bool]], Any], latents: Tensor, batched: Tensor
) -> None:
    decoder = AdaptiveDecoder(
        fragile(lambda call: call in (1, 3, 6)),
        probe=ScriptedProbe([GIB]),
        policy=Policy(strategy="per_frame", reserve_bytes=0),
    )
    assert close(run(decoder, latents), batched)
    assert decoder.report.retries == 3
    assert sum(decoder.report.chunk_frames) == 8


def test_a_larger_chunk_is_tried_where_only_the_smallest_cannot_be_had(
    vae: Any, latents: Tensor, batched: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(vae.decoder).forward

    def forward(self: Any, hidden: Tensor, *rest: Any, **more: Any) -> Any:
        if hidden.shape[2] in (1, 8) and not hidden.is_meta:  # tracing the costs of tiles takes no memory
            raise MemoryError("a library needs more for this than for some frames")
        return real(self, hidden, *rest, **more)

    monkeypatch.setattr(type(vae.decoder), "forward", forward)
    tight = needs(vae, latents, 1)
    decoder = AdaptiveDecoder(vae, probe=ScriptedProbe([tight]), policy=FREE)
    assert close(run(decoder, latents), batched)
    assert decoder.report.plan.frames_per_chunk == 1
    assert set(decoder.report.chunk_frames) <= {2, 3, 4}


def test_an_error_that_is_not_about_memory_is_not_retried(vae: Any) -> None:
    decoder = AdaptiveDecoder(vae, probe=ScriptedProbe([GIB]), policy=FREE)
    with pytest.raises(RuntimeError, match="channels"):
        run(decoder, torch.randn(1, 9, 8, 2, 3))


def test_a_report_before_the_first_decode_is_refused(vae: Any) -> None:
    with pytest.raises(RuntimeError, match="no decode"):
        _ = AdaptiveDecoder(vae, probe=ScriptedProbe([GIB])).report


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"strategy": "batched"},
        {"strategy": "chunked"},
        {"strategy": "per_frame"},
        {"frames_per_chunk": 3},
    ],
)
def test_the_plain_function_gives_diffusers_own_pixels_on_every_strategy(
    vae: Any, latents: Tensor, batched: Tensor, wanted: dict[str, Any]
) -> None:
    frames = adaptive.decode(vae, latents, **wanted)
    assert close(frames, batched)
    assert not frames.requires_grad


def test_the_plain_functions_refuse_chunks_that_would_hold_all_frames(vae: Any, latents: Tensor) -> None:
    wanted: dict[str, Any] = {"strategy": "chunked", "frames_per_chunk": 99}
    with pytest.raises(UnsupportedVae, match="chunks of 99"):
        adaptive.decode(vae, latents, **wanted)
    with pytest.raises(UnsupportedVae, match="chunks of 99"):
        adaptive.plan(vae, latents.shape, **wanted)


def test_the_plain_function_refuses_a_budget_that_nothing_fits(vae: Any, latents: Tensor) -> None:
    with pytest.raises(DoesNotFit) as refused:
        adaptive.decode(vae, latents, budget_bytes=1000)
    assert refused.value.budget_bytes == 1000
    assert refused.value.needed_bytes > 1000


@pytest.mark.parametrize("frames_per_chunk", [1, 3, 8, 100])
def test_streaming_yields_all_frames_in_order(
    vae: Any, latents: Tensor, batched: Tensor, frames_per_chunk: int
) -> None:
    parts = list(adaptive.stream_decode(vae, latents, frames_per_chunk=frames_per_chunk))
    assert close(torch.cat(parts, 2), batched)
    assert (len(parts) == 1) == (frames_per_chunk >= 8)


def test_streaming_refuses_a_chunk_of_no_frames_at_once(vae: Any, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="frames_per_chunk"):
        adaptive.stream_decode(vae, latents, frames_per_chunk=0)


def test_a_plan_can_be_had_without_decoding(vae: Any, latents: Tensor) -> None:
    plan = adaptive.plan(vae, latents.shape, budget_bytes=needs(vae, latents, 2))
    assert plan.frames_per_chunk == 2
    assert plan.reason == "fastest_that_fits"
