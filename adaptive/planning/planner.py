"""Decides how a decode runs: takes bytes, returns a plan and its reason. Pure arithmetic.

Owns the choice among rungs (`adaptive.planning.rungs`) and its reason. It does not know torch, devices or
jobs. The planner picks the fastest rung that fits, by predicted seconds; if two differ by less than 5 %, the
larger chunk. Rungs with tiles come after all rungs of whole pictures, and approximate rungs after all exact
ones. An approximate rung is never chosen where an exact one fits, however fast it is, unless the caller names
it.
"""

import math
from dataclasses import replace

from adaptive.errors import DoesNotFit
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.speed import UNTIMED
from adaptive.memory.speed import SpeedModel as SpeedModel
from adaptive.planning.policy import RESERVE_BYTES as RESERVE_BYTES
from adaptive.planning.policy import Policy as Policy
from adaptive.planning.policy import chunk_sizes as chunk_sizes
from adaptive.planning.rungs import PlanInputs as PlanInputs
from adaptive.planning.rungs import Rung as Rung
from adaptive.planning.rungs import budget_of as budget_of
from adaptive.planning.rungs import fastest_if_it_fits as fastest_if_it_fits
from adaptive.planning.rungs import rungs as rungs
from adaptive.planning.weight_placement import ComponentSize as ComponentSize
from adaptive.planning.weight_placement import Placement as Placement
from adaptive.planning.weight_placement import plan_weights as plan_weights
from adaptive.types import (
    DecodePlan,
    LatentShape,
    MemoryReading,
    PeakEstimate,
    Strategy,
)

MIB = 2**20
WORTH_TRYING = 0.99  # a rung that may fail must take less than this share of the fitting rung's time
# Assumed chance of fitting for a rung whose optimistic bytes fit and whose bound rests on few decodes: a try
# teaches more than a failure costs.
OPTIMISTIC_CHANCE = 0.95
UNPREDICTED = PeakEstimate(0, 0, 0)  # of a decode whose memory cannot be predicted


def plan_decode(
    profile: MemoryProfile,
    shape: LatentShape,
    reading: MemoryReading,
    policy: Policy | None = None,
    inputs: PlanInputs | None = None,
) -> DecodePlan:
    """Plan for latents of `shape` with the memory of `reading`: the fastest allowed rung that fits.

    Raises `DoesNotFit` with the bytes of the smallest rung where none fits, and `UnsupportedVae` where the
    policy forces a strategy that the VAE does not support.
    """
    policy, inputs = policy or Policy(), inputs or PlanInputs()
    residuals = inputs.residuals or LearnedMargins(reading.device)
    inputs = replace(inputs, residuals=residuals)
    budget = budget_of(reading, policy, inputs.held_bytes)
    chosen = fastest_if_it_fits(profile, shape, budget, policy, inputs)
    ladder: tuple[Rung, ...] = () if chosen is None else (chosen,)
    if chosen is None:
        ladder = rungs(profile, shape, budget, policy, inputs, whole_pictures=True)
        chosen = next((rung for rung in ladder if rung.fits), None)
        if chosen is not None and inputs.may_fail:
            chosen = _fastest_on_average(ladder, chosen, budget)
    if chosen is None:
        ladder = rungs(profile, shape, budget, policy, inputs)
        chosen = next((rung for rung in ladder if rung.fits), None)
    if chosen is None:
        raise _refusal(ladder, budget, policy, inputs, smallest_unforced(profile, shape, policy, inputs))
    return _plan_of(chosen, ladder, budget, reading, _reason(profile, policy, chosen, ladder))


def least_plan(
    profile: MemoryProfile,
    shape: LatentShape,
    reading: MemoryReading,
    policy: Policy,
    inputs: PlanInputs,
) -> DecodePlan:
    """The exact rung that is expected to need least, for a caller who decodes even if nothing fits."""
    inputs = replace(inputs, residuals=inputs.residuals or LearnedMargins(reading.device))
    budget = budget_of(reading, policy, inputs.held_bytes)
    ladder = rungs(profile, shape, budget, replace(policy, exact_only=True), inputs)
    chosen = min(ladder, key=lambda rung: rung.predicted.expected_bytes)
    return _plan_of(chosen, ladder, budget, reading, "nothing_fits")


def _plan_of(
    chosen: Rung, ladder: tuple[Rung, ...], budget_bytes: int, reading: MemoryReading, reason: str
) -> DecodePlan:
    return DecodePlan(
        latent_frames=chosen.latent_frames,
        frames_per_chunk=chosen.frames_per_chunk,
        exact=chosen.exact,
        reason=reason,
        detail=_detail(chosen, ladder, budget_bytes, reading.free_bytes),
        predicted=chosen.predicted,
        budget_bytes=budget_bytes,
        free_bytes=reading.free_bytes,
        predicted_seconds=chosen.predicted_seconds,
        tiles=chosen.tiles,
        dropped_bytes=chosen.dropped_bytes,
        reload_seconds=chosen.reload_seconds,
    )


def unpredicted_plan(latent_frames: int, reading: MemoryReading, policy: Policy, why: str) -> DecodePlan:
    """The VAE's own one call, for a VAE whose memory cannot be predicted. `why` is the reason in words."""
    return DecodePlan(
        latent_frames=latent_frames,
        frames_per_chunk=latent_frames,
        exact=True,
        reason="only_strategy",
        detail=f"the VAE's own call, whose memory is not known: {why}",
        predicted=UNPREDICTED,
        budget_bytes=budget_of(reading, policy),
        free_bytes=reading.free_bytes,
    )


def _fastest_on_average(ladder: tuple[Rung, ...], fitting: Rung, budget_bytes: int) -> Rung:
    """The rung with the least expected time: `fitting`, or a faster one that fits with a chance of at least
    half.

    The time of a rung that may fail includes the failed pass and a decode with `fitting` afterwards.
    """
    best, least = fitting, _seconds(fitting)
    for rung in ladder[: ladder.index(fitting)]:
        chance = _chance_of_fitting(rung.predicted, budget_bytes + rung.dropped_bytes)
        seconds = _seconds(rung)
        if chance < 0.5 or (rung.dropped_bytes and rung.predicted_seconds is None):
            continue
        passes = math.ceil(rung.latent_frames / rung.frames_per_chunk)
        failing = seconds / passes + _seconds(fitting)
        on_average = chance * seconds + (1 - chance) * failing
        if on_average < WORTH_TRYING * least:
            best, least = rung, on_average
    return best


def _seconds(rung: Rung) -> float:
    """Predicted seconds; only a proportion before any decode was timed (then no rung of the ladder was)."""
    if rung.predicted_seconds is not None:
        return rung.predicted_seconds
    return UNTIMED.seconds(LatentShape(1, 1, rung.latent_frames, 1, 1), rung.frames_per_chunk)


def _chance_of_fitting(predicted: PeakEstimate, budget_bytes: int) -> float:
    """Lower estimate of the chance (0..1) that a decode fits the budget.

    It is 0.5 where the budget equals the expected bytes, the median, and 0.98 at the upper bound.
    """
    if predicted.hoped_bytes is not None and budget_bytes >= predicted.hoped_bytes:
        return OPTIMISTIC_CHANCE
    if budget_bytes < predicted.expected_bytes:
        return 0.0
    above = budget_bytes - predicted.expected_bytes
    return 0.5 + 0.48 * min(1.0, above / max(1, predicted.upper_bytes - predicted.expected_bytes))


def smallest_unforced(
    profile: MemoryProfile, shape: LatentShape, policy: Policy, inputs: PlanInputs
) -> Rung | None:
    """The rung that needs least if `policy` forced no strategy or chunk size; None if it forces none."""
    if not policy.forced:
        return None
    ladder = rungs(profile, shape, 0, replace(policy, strategy="auto", frames_per_chunk=None), inputs)
    return min(ladder, key=lambda rung: rung.predicted.upper_bytes)


def _refusal(
    ladder: tuple[Rung, ...],
    budget_bytes: int,
    policy: Policy,
    inputs: PlanInputs,
    unforced: Rung | None,
) -> DoesNotFit:
    """The error for a decode that does not fit: it lacks device memory, or host memory for parked
    activations.
    """
    smallest = min(ladder, key=lambda rung: rung.predicted.upper_bytes, default=None)
    needed = smallest.predicted.upper_bytes if smallest else budget_bytes + 1
    name = smallest.strategy if smallest else policy.strategy
    if smallest is not None and needed <= budget_bytes and inputs.host_budget_bytes is not None:
        return DoesNotFit(
            f"{name} decoding with activations parked in host memory",
            needed_bytes=smallest.predicted.host_bytes,
            budget_bytes=inputs.host_budget_bytes,
        )
    hint = ""
    if unforced is not None and unforced.predicted.upper_bytes < needed:
        hint = f"{unforced.strategy} decoding would need {unforced.predicted.upper_bytes:,} bytes"
    return DoesNotFit(f"{name} decoding", needed_bytes=needed, budget_bytes=budget_bytes, hint=hint)


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
    most = f"at most {format_mebibytes(chosen.predicted.upper_bytes)}"
    if not chosen.fits:
        most = f"probably {format_mebibytes(chosen.predicted.expected_bytes)}, {most},"
    text = (
        f"{describe_rung(chosen)} needs {most} of "
        f"{format_mebibytes(budget_bytes + chosen.dropped_bytes)} ({format_mebibytes(free_bytes)} free)"
    )
    if chosen.predicted.host_bytes:
        text += f", and {format_mebibytes(chosen.predicted.host_bytes)} of host memory for parked activations"
    faster = ladder[: ladder.index(chosen)]
    if faster:
        next_faster = faster[-1]
        would_need = format_mebibytes(next_faster.predicted.upper_bytes)
        text += f"; {describe_rung(next_faster)} would need {would_need}"
    return text


def describe_rung(rung: Rung) -> str:
    """Name of a rung in messages, with its chunk size or tiles."""
    text = _describe_cut(rung)
    return (
        f"{text} after dropping {format_mebibytes(rung.dropped_bytes)} of idle weights"
        if rung.dropped_bytes
        else text
    )


def _describe_cut(rung: Rung) -> str:
    if rung.tiles.count > 1:
        return f"{rung.strategy} ({rung.tiles.rows} x {rung.tiles.columns} tiles)"
    chunked = rung.strategy in (Strategy.CHUNKED, Strategy.APPROXIMATE_CHUNKED)
    return f"{rung.strategy} ({rung.frames_per_chunk} latent frames)" if chunked else str(rung.strategy)


def format_mebibytes(size_bytes: int) -> str:
    """A byte count in MiB for messages."""
    return f"{size_bytes / MIB:,.0f} MiB"
