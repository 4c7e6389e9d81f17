"""Deciding how a decode runs: bytes in, plan and reason out. Pure arithmetic.

Owns: the ladder of rungs, what each needs, and the choice among them. Must not know: torch, devices, jobs.
The choice is the fastest rung that fits, by predicted seconds; among rungs of the same speed the smallest.
Tiles come after all that see whole pictures, and what changes pixels after all that does not: an approximate
rung is never chosen where an exact one fits, however fast, unless it is asked for by name.
"""

import math
from dataclasses import dataclass, replace

from adaptive.errors import DoesNotFit
from adaptive.memory import MemoryProfile
from adaptive.placement import ComponentSize as ComponentSize
from adaptive.placement import Placement as Placement
from adaptive.placement import plan_weights as plan_weights
from adaptive.policy import RESERVE_BYTES as RESERVE_BYTES
from adaptive.policy import Policy as Policy
from adaptive.policy import chunk_sizes as chunk_sizes
from adaptive.policy import cuts
from adaptive.residuals import Residuals
from adaptive.speed import SpeedModel as SpeedModel
from adaptive.types import (
    WHOLE_PICTURE,
    Cut,
    DecodePlan,
    LatentShape,
    MemoryReading,
    PeakEstimate,
    SpatialTiles,
    Strategy,
)

MIB = 2**20
SAME_SPEED = 1.01
WORTH_TRYING = 0.99  # of the time of what surely fits
# Of a way whose expected peak fits, while few decodes are behind its bound: a try teaches more than it costs.
CHANCE_OF_THE_UNKNOWN = 0.95


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to decode, with what it needs and whether it fits."""

    latent_frames: int
    frames_per_chunk: int
    predicted: PeakEstimate
    fits: bool
    predicted_seconds: float | None
    tiles: SpatialTiles = WHOLE_PICTURE
    exact: bool = True
    dropped_bytes: int = 0  # idle weights that leave the device first; see `PlanInputs.droppable_bytes`
    reload_seconds: float = 0.0  # of `predicted_seconds`, what bringing them back takes

    @property
    def cut(self) -> Cut:
        """How the decode is cut up."""
        return Cut(self.frames_per_chunk, self.tiles, self.exact)

    @property
    def strategy(self) -> Strategy:
        """The rung's name."""
        return self.cut.strategy(self.latent_frames)


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What is known beside shape, reading and policy; all optional.

    `speed` is a calibrated model (without one, larger chunks count as faster). `held_bytes` are the decode's
    own live bytes while it runs, already missing from the free memory. `kept_output_bytes` must stay free of
    streamed rungs for the video that the caller gathers. No cut before `at_most`, in the order of falling
    back, is looked at. `droppable_bytes` of weights on the device are idle while decoding and can leave it, a
    host copy kept: bringing them back costs `reload_seconds`. `host_budget_bytes` bounds what a layer sweep
    parks in host memory beside another device. `may_fail`: an out-of-memory costs a chunk and nothing else,
    so that a faster rung may be tried whose bound does not fit, where that takes less time on average.
    """

    residuals: Residuals | None = None
    speed: SpeedModel | None = None
    held_bytes: int = 0
    kept_output_bytes: int = 0
    at_most: Cut | None = None
    droppable_bytes: int = 0
    reload_seconds: float = 0.0
    host_budget_bytes: int | None = None
    may_fail: bool = False


def budget_of(reading: MemoryReading, policy: Policy, held_bytes: int = 0) -> int:
    """Bytes a decode may take: free memory less the reserve, plus what it holds already, at most the policy's
    cap.
    """
    available = max(0, reading.free_bytes - policy.reserve_bytes) + held_bytes
    return available if policy.budget_bytes is None else min(available, policy.budget_bytes)


def rungs(
    profile: MemoryProfile,
    shape: LatentShape,
    budget_bytes: int,
    policy: Policy,
    inputs: PlanInputs | None = None,
    *,
    whole_pictures: bool = False,
) -> tuple[Rung, ...]:
    """Every rung that the policy allows, fastest first, fitting or not: see `cuts` for the kinds' order.

    Tiles that need no less memory than fewer tiles are left out. With `whole_pictures` only exact rungs
    without tiles are looked at: the costs of tiles need not be known, which may have to be traced first.
    """
    inputs = inputs or PlanInputs()
    found: list[Rung] = []
    for cut in cuts(profile, shape, policy):
        if whole_pictures and (cut.tiles.count > 1 or not cut.exact):
            continue
        if inputs.at_most is not None and cut.order < inputs.at_most.order:
            continue
        rung = _rung(profile, shape, cut, budget_bytes, inputs)
        if cut.tiles.count > 1 and not _smaller_than_all(rung, found, policy):
            continue
        found.append(rung)
        if inputs.droppable_bytes and not rung.fits and rung.exact and rung.tiles.count == 1:
            found.append(_after_dropping(rung, budget_bytes, policy, inputs))
    return tuple(sorted(found, key=_order))


def _after_dropping(rung: Rung, budget_bytes: int, policy: Policy, inputs: PlanInputs) -> Rung:
    """The same, with idle weights off the device: room that the policy's own cap still bounds."""
    budget = budget_bytes + inputs.droppable_bytes
    budget = budget if policy.budget_bytes is None else min(budget, policy.budget_bytes)
    seconds = None if rung.predicted_seconds is None else rung.predicted_seconds + inputs.reload_seconds
    return replace(
        rung,
        fits=_fits(rung.predicted, budget, inputs),
        predicted_seconds=seconds,
        dropped_bytes=inputs.droppable_bytes,
        reload_seconds=0.0 if seconds is None else inputs.reload_seconds,
    )


def _rung(
    profile: MemoryProfile, shape: LatentShape, cut: Cut, budget_bytes: int, inputs: PlanInputs
) -> Rung:
    predicted = profile.estimate_cut(shape, cut, inputs.residuals)
    kept = 0 if cut.strategy(shape.frames) is Strategy.BATCHED else inputs.kept_output_bytes
    if kept:
        predicted = replace(
            predicted,
            live_bytes=predicted.live_bytes + kept,
            expected_bytes=predicted.expected_bytes + kept,
            upper_bytes=predicted.upper_bytes + kept,
        )
    plain = cut.tiles.count == 1 and cut.exact
    seconds = inputs.speed.seconds(shape, cut.frames_per_chunk) if inputs.speed and plain else None
    fits = _fits(predicted, budget_bytes, inputs)
    return Rung(shape.frames, cut.frames_per_chunk, predicted, fits, seconds, cut.tiles, cut.exact)


def _fits(predicted: PeakEstimate, budget_bytes: int, inputs: PlanInputs) -> bool:
    host_bytes = inputs.host_budget_bytes
    return predicted.upper_bytes <= budget_bytes and (
        host_bytes is None or predicted.host_bytes <= host_bytes
    )


def _smaller_than_all(rung: Rung, before: list[Rung], policy: Policy) -> bool:
    """Whether a rung of tiles is worth having: one that was asked for by name always is."""
    rivals = [each for each in before if not policy.forced or each.tiles.count > 1]
    return all(rung.predicted.upper_bytes < each.predicted.upper_bytes for each in rivals)


def _order(rung: Rung) -> tuple[bool, int, float, int, int]:
    seconds = _rounded(rung.predicted_seconds)
    return not rung.exact, rung.tiles.count, seconds, -rung.frames_per_chunk, rung.dropped_bytes


def _rounded(seconds: float | None) -> float:
    """Order of magnitude in steps of one per cent, so that noise does not decide."""
    return 0.0 if not seconds else math.floor(math.log(seconds) / math.log(SAME_SPEED))


def plan_decode(
    profile: MemoryProfile,
    shape: LatentShape,
    reading: MemoryReading,
    policy: Policy | None = None,
    inputs: PlanInputs | None = None,
) -> DecodePlan:
    """The fastest allowed rung that fits. `DoesNotFit` with the bytes of the smallest where none does."""
    policy, inputs = policy or Policy(), inputs or PlanInputs()
    residuals = inputs.residuals or Residuals(reading.device)
    inputs = replace(inputs, residuals=residuals)
    budget = budget_of(reading, policy, inputs.held_bytes)
    ladder = rungs(profile, shape, budget, policy, inputs, whole_pictures=True)
    chosen = next((rung for rung in ladder if rung.fits), None)
    if chosen is not None and inputs.may_fail:
        chosen = _on_average(ladder, chosen, budget)
    if chosen is None:
        ladder = rungs(profile, shape, budget, policy, inputs)
        chosen = next((rung for rung in ladder if rung.fits), None)
    if chosen is None:
        raise _refusal(ladder, budget, policy, inputs)
    return DecodePlan(
        latent_frames=shape.frames,
        frames_per_chunk=chosen.frames_per_chunk,
        exact=chosen.exact,
        reason=_reason(profile, policy, chosen, ladder),
        detail=_detail(chosen, ladder, budget, reading.free_bytes),
        predicted=chosen.predicted,
        budget_bytes=budget,
        free_bytes=reading.free_bytes,
        predicted_seconds=chosen.predicted_seconds,
        tiles=chosen.tiles,
        dropped_bytes=chosen.dropped_bytes,
        reload_seconds=chosen.reload_seconds,
    )


def _on_average(ladder: tuple[Rung, ...], fitting: Rung, budget_bytes: int) -> Rung:
    """The rung that takes least time on average, its failure and what then follows counted: `fitting`, or a
    faster one that fits more likely than not.
    """
    best, least = fitting, fitting.predicted_seconds
    if least is None:
        return fitting
    for rung in ladder[: ladder.index(fitting)]:
        chance = _chance(rung.predicted, budget_bytes + rung.dropped_bytes)
        if rung.predicted_seconds is None or chance < 0.5:
            continue
        passes = math.ceil(rung.latent_frames / rung.frames_per_chunk)
        failing = rung.predicted_seconds / passes + (fitting.predicted_seconds or 0.0)
        seconds = chance * rung.predicted_seconds + (1 - chance) * failing
        if seconds < WORTH_TRYING * least:
            best, least = rung, seconds
    return best


def _chance(predicted: PeakEstimate, budget_bytes: int) -> float:
    """Of fitting, at least: a half at the median that is expected, nearly all at the bound."""
    if budget_bytes < predicted.expected_bytes:
        return 0.0
    if predicted.tentative:
        return CHANCE_OF_THE_UNKNOWN
    above = budget_bytes - predicted.expected_bytes
    return 0.5 + 0.48 * min(1.0, above / max(1, predicted.upper_bytes - predicted.expected_bytes))


def _refusal(ladder: tuple[Rung, ...], budget_bytes: int, policy: Policy, inputs: PlanInputs) -> DoesNotFit:
    """What the smallest rung lacks: device memory, or host memory for what it parks there."""
    smallest = min(ladder, key=lambda rung: rung.predicted.upper_bytes, default=None)
    needed = smallest.predicted.upper_bytes if smallest else budget_bytes + 1
    name = smallest.strategy if smallest else policy.strategy
    if smallest is not None and needed <= budget_bytes and inputs.host_budget_bytes is not None:
        return DoesNotFit(
            f"{name} decoding with activations parked in host memory",
            needed_bytes=smallest.predicted.host_bytes,
            budget_bytes=inputs.host_budget_bytes,
        )
    return DoesNotFit(f"{name} decoding", needed_bytes=needed, budget_bytes=budget_bytes)


def _reason(profile: MemoryProfile, policy: Policy, chosen: Rung, ladder: tuple[Rung, ...]) -> str:
    if policy.forced:
        return "requested"
    if not chosen.exact:
        return "nothing_exact_fits"
    if not chosen.fits:
        return "fits_probably"
    if chosen.dropped_bytes:
        return "fits_without_idle_weights"
    if not profile.can_stream:
        return "only_strategy"
    return "fastest" if chosen is ladder[0] else "fastest_that_fits"


def _detail(chosen: Rung, ladder: tuple[Rung, ...], budget_bytes: int, free_bytes: int) -> str:
    most = f"at most {bytes_named(chosen.predicted.upper_bytes)}"
    if not chosen.fits:
        most = f"probably {bytes_named(chosen.predicted.expected_bytes)}, {most},"
    text = (
        f"{rung_named(chosen)} needs {most} of "
        f"{bytes_named(budget_bytes + chosen.dropped_bytes)} ({bytes_named(free_bytes)} free)"
    )
    if chosen.predicted.host_bytes:
        text += f", and {bytes_named(chosen.predicted.host_bytes)} of host memory for parked activations"
    faster = ladder[: ladder.index(chosen)]
    if faster:
        text += f"; {rung_named(faster[-1])} would need {bytes_named(faster[-1].predicted.upper_bytes)}"
    return text


def rung_named(rung: Rung) -> str:
    """A rung's name for people."""
    text = _cut_named(rung)
    return (
        f"{text} after dropping {bytes_named(rung.dropped_bytes)} of idle weights"
        if rung.dropped_bytes
        else text
    )


def _cut_named(rung: Rung) -> str:
    if rung.tiles.count > 1:
        return f"{rung.strategy} ({rung.tiles.rows} x {rung.tiles.columns} tiles)"
    chunked = rung.strategy in (Strategy.CHUNKED, Strategy.APPROXIMATE_CHUNKED)
    return f"{rung.strategy} ({rung.frames_per_chunk} latent frames)" if chunked else str(rung.strategy)


def bytes_named(size_bytes: int) -> str:
    """A byte count for people."""
    return f"{size_bytes / MIB:,.0f} MiB"
