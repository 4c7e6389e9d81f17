"""Whatever is done to a VAE, an enabled one gives what the untouched one gives, or raises the same error.

Rows are conditions (`enable_conditions`), columns are VAEs (`enable_families`). Each cell decodes and encodes
with memory for one call, for chunks only and, where a family has them, for strips only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from enable_conditions import CONDITIONS, Condition, LiveVae, Result, other_decode
from enable_families import FAMILIES, STREAMED, STRIPS

import adaptive.decoding.one_encode
import adaptive.device.probe
import adaptive.memory.profile_trace
from adaptive.memory.profile_trace import TracedBytes
from adaptive.pipelines.enable import Attachment, enable
from adaptive.planning.policy import RESERVE_BYTES
from adaptive.testing import ScriptedProbe

UNIT_BYTES = 2**30  # what a frame of a chunk is said to take, for each latent pixel; strips take next to none
# Budgets in units a pixel. With a margin of 1.4, chunks of two latent frames fit in `chunks`.
BUDGETS = {"one call": 1000.0, "chunks": 2.9, "strips": 0.5}


@dataclass(frozen=True, slots=True)
class Raised:
    """An error, by its class and text."""

    kind: str
    text: str


Outcome = Result | Raised


class Memory:
    """The free memory of the device, as a test sets it; none while a denoiser is loaded."""

    def __init__(self) -> None:
        self.budget_bytes = 0
        self.live: LiveVae | None = None

    def free_bytes(self, _reads: int) -> int:
        denoiser = self.live and self.live.denoiser
        return 0 if denoiser and denoiser.loaded else self.budget_bytes + RESERVE_BYTES


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Scripted memory, and arithmetic instead of traced bytes, for VAEs that can stream."""
    memory = Memory()
    monkeypatch.setattr(adaptive.device.probe, "CpuProbe", lambda: ScriptedProbe(memory.free_bytes))
    traced_bytes = adaptive.memory.profile_trace.trace_bytes

    def for_decode(traced: Any, frames: int, frames_per_chunk: int, size: tuple[int, int]) -> TracedBytes:
        if not traced.traits.exact_streaming:
            return traced_bytes(traced, frames, frames_per_chunk, size)
        unit = float(min(frames, frames_per_chunk) * UNIT_BYTES)
        return TracedBytes(unit, 0.0, unit)

    def of_chunks(_traced: Any, _shape: tuple[int, ...], frames_per_chunk: int, *, streamed: bool) -> int:
        assert not streamed
        return frames_per_chunk * UNIT_BYTES

    monkeypatch.setattr(adaptive.memory.profile_trace, "trace_bytes", for_decode)
    monkeypatch.setattr(adaptive.memory.profile_trace, "_strip_costs", lambda *_: (1.0, 1.0, 1.0))
    monkeypatch.setattr(adaptive.decoding.one_encode, "whole_bytes", lambda _, shape: shape[2] * UNIT_BYTES)
    monkeypatch.setattr(adaptive.decoding.one_encode, "chunked_bytes", of_chunks)
    return memory


def alive(name: str) -> LiveVae:
    """A new VAE and its inputs."""
    case = FAMILIES[name]
    vae = case.build()
    return LiveVae(vae, case.latents(vae), case.clip(), dict(case.arguments))


def outcome(live: LiveVae, condition: Condition, call: Callable[[LiveVae], Result]) -> tuple[Outcome, Any]:
    """What a call gives or raises, and what another thread's calls gave meanwhile."""
    torch.manual_seed(3)
    with condition.around(live) as others:
        try:
            return call(live), others
        except Exception as error:
            return Raised(type(error).__name__, str(error)), others


def calls(name: str, condition: Condition) -> Iterator[tuple[str, Callable[[LiveVae], Result]]]:
    yield "decode", condition.decode
    if FAMILIES[name].encoded:
        yield "encode", condition.encode


@cache
def untouched(name: str, condition_name: str) -> dict[str, tuple[Outcome, Any]]:
    """Outcomes of a VAE that was never enabled."""
    condition, live = CONDITIONS[condition_name], alive(name)
    condition.before(live)
    condition.after(live)
    found = {call: outcome(live, condition, run) for call, run in calls(name, condition)}
    if condition.changes_pixels:
        assert all(difference(found[call][0], untouched(name, "plain")[call][0], 0.01) for call in found)
    return found


def difference(found: Outcome, expected: Outcome, tolerance: float) -> str | None:
    """How two outcomes differ; None where they do not."""
    if isinstance(found, Raised) or isinstance(expected, Raised):
        return None if same_error(found, expected) else f"{_told(found)} instead of {_told(expected)}"
    for one, other in zip(found, expected, strict=True):
        if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
            return (
                f"{one.shape} {one.dtype} {one.device} instead of {other.shape} {other.dtype} {other.device}"
            )
        if one.device.type != "meta":
            error = (one - other).double().norm() / other.double().norm()
            if not error <= tolerance:
                return f"error {error:.1e}"
    return None


def same_error(found: Outcome, expected: Outcome) -> bool:
    """Whether both raised the same. `DtypeMismatch` is torch's `RuntimeError` with a clearer text."""
    if not isinstance(found, Raised) or not isinstance(expected, Raised):
        return False
    return found == expected or (found.kind, expected.kind) == ("DtypeMismatch", "RuntimeError")


def _told(found: Outcome) -> str:
    return f"{found.kind}: {found.text[:160]}" if isinstance(found, Raised) else "a result"


def differences(name: str, condition_name: str, memory: Memory) -> Iterator[str]:
    """What differs in one cell, call by call."""
    condition, live = CONDITIONS[condition_name], alive(name)
    memory.live, memory.budget_bytes = live, 2**50
    condition.before(live)
    attachment = enable(type("Pipe", (), {"vae": live.vae})())
    condition.after(live)
    for call, run in calls(name, condition):
        accepted = accepted_outcomes(name, condition_name, call)
        for level in levels(name, condition_name, call):
            set_budget(memory, live, call, level)
            found, others = outcome(live, condition, run)
            if condition_name == "plain" and call == "decode" and name in STREAMED:
                yield from wrong_strategy(attachment, level)
            if condition.disturbs and level == "one call" and len(accepted) > 1:
                continue
            told = [difference(found, expected, condition.tolerance) for expected in accepted]
            refused = isinstance(found, Raised) and found.kind == "DoesNotFit"
            may_refuse = refused and level == "strips" and not condition.strips
            if None not in told and not may_refuse:
                yield f"{call} with memory for {level}: {told[0]}"
            if condition.disturbs:
                yield from wrong_decodes(name, others, f"{call} with memory for {level}")


def accepted_outcomes(name: str, condition_name: str, call: str) -> list[Outcome]:
    """Distinct outcomes of the untouched VAE that are accepted."""
    condition = CONDITIONS[condition_name]
    expected, _ = untouched(name, condition_name)[call]
    plain, _ = untouched(name, "plain")[call]
    if condition.or_plain and difference(expected, plain, condition.tolerance):
        return [plain, expected]
    return [expected]


def wrong_decodes(name: str, others: list[Result], meanwhile: str) -> Iterator[str]:
    """What the other thread's decodes got wrong; at least one must have come between."""
    if not others:
        yield f"{meanwhile}: no other thread came between"
    for other in others:
        told = difference(other, undisturbed(name), 2e-5)
        if told:
            yield f"another thread's decode during {meanwhile}: {told}"


@cache
def undisturbed(name: str) -> Result:
    """What the other thread's decode gives alone."""
    return other_decode(alive(name))


def levels(name: str, condition_name: str, call: str) -> Iterator[str]:
    """Budgets under which a call is made."""
    if call == "decode" or condition_name == "plain":
        yield "one call"
    yield "chunks"
    if call == "decode" and name in STRIPS:
        yield "strips"


def set_budget(memory: Memory, live: LiveVae, call: str, level: str) -> None:
    """Memory for one call of all frames, for chunks, or for strips."""
    if call == "encode":
        assert live.clip is not None
        frames = live.clip.shape[2] if live.clip.ndim == 5 else live.clip.shape[0]
        units = frames * (BUDGETS[level] if level == "one call" else 0.9)
    else:
        units = BUDGETS[level] * live.latents.shape[-1] * live.latents.shape[-2]
    memory.budget_bytes = round(units * UNIT_BYTES)


def wrong_strategy(attachment: Attachment, level: str) -> Iterator[str]:
    """Without any condition, each budget leads to the strategy that it is there for."""
    expected = {"one call": ("batched",), "chunks": ("chunked", "per_frame"), "strips": ("tiled",)}[level]
    if attachment.report.strategy not in expected:
        yield f"decode with memory for {level} was {attachment.report.strategy}"


CELLS = [(condition, name) for condition in CONDITIONS for name in CONDITIONS[condition].vaes]


@pytest.mark.parametrize(("condition", "name"), CELLS)
def test_an_enabled_vae_gives_what_the_untouched_one_gives(condition: str, name: str, memory: Memory) -> None:
    assert not list(differences(name, condition, memory))
