"""The ladder: every way to decode that a policy allows, with its bytes, its seconds and whether it fits.

Owns the rungs and their order. Pure arithmetic; it does not know torch, devices, jobs, or how a rung is
chosen (see `adaptive.planning.planner`).
"""

from dataclasses import dataclass, replace

from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.memory.speed import SpeedModel
from adaptive.planning.policy import Policy, cuts
from adaptive.types import (
    WHOLE_PICTURE,
    Cut,
    LatentShape,
    MemoryReading,
    PeakEstimate,
    SpatialTiles,
    Strategy,
)

SAME_SPEED = 1.05  # learning from one more decode moves predicted times by a few per cent


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to decode, with its predicted needs and whether it fits."""

    latent_frames: int
    frames_per_chunk: int
    predicted: PeakEstimate
    fits: bool
    predicted_seconds: float | None
    tiles: SpatialTiles = WHOLE_PICTURE
    exact: bool = True
    dropped_bytes: int = 0  # idle weights that leave the device first; see `PlanInputs.droppable_bytes`
    reload_seconds: float = 0.0  # the part of `predicted_seconds` that reloads them

    @property
    def cut(self) -> Cut:
        """Chunk size, tiles and exactness."""
        return Cut(self.frames_per_chunk, self.tiles, self.exact)

    @property
    def strategy(self) -> Strategy:
        """The rung's name."""
        return self.cut.strategy(self.latent_frames)


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """Optional inputs of a plan beside shape, reading and policy.

    - `residuals`: learned margins; None means the cold margins of the device.
    - `speed`: a fitted model of seconds. Without one, larger chunks count as faster.
    - `held_bytes`: live bytes of the running decode, which are already missing from the free memory.
    - `kept_output_bytes`: room for the video that the caller gathers; streamed rungs must leave it free.
    - `at_most`: the planner ignores cuts that come before this one in the fallback order.
    - `droppable_bytes`: weights on the device that are idle during decoding and may leave it, since the host
      keeps a copy. Bringing them back takes `reload_seconds`.
    - `host_budget_bytes`: limit of what a layer sweep may park in host memory when another device decodes.
    - `may_fail`: an out-of-memory costs one chunk and nothing else. The planner may then try a faster rung
      whose bound does not fit, where that takes less time on average.
    """

    residuals: LearnedMargins | None = None
    speed: SpeedModel | None = None
    held_bytes: int = 0
    kept_output_bytes: int = 0
    at_most: Cut | None = None
    droppable_bytes: int = 0
    reload_seconds: float = 0.0
    host_budget_bytes: int | None = None
    may_fail: bool = False


def budget_of(reading: MemoryReading, policy: Policy, held_bytes: int = 0) -> int:
    """Bytes a decode may take: free memory less the reserve, plus `held_bytes`, capped by the policy."""
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
    """Every rung that the policy allows, fastest first, whether it fits or not.

    Exact rungs come before approximate ones, and whole pictures before tiles. Tiles that need no less memory
    than fewer tiles are left out. With `whole_pictures` only exact rungs without tiles are returned, so that
    the costs of tiles, which may not be traced yet, are not needed.
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
    return _fastest_first(found)


def fastest_if_it_fits(
    profile: MemoryProfile, shape: LatentShape, budget_bytes: int, policy: Policy, inputs: PlanInputs
) -> Rung | None:
    """The first of `rungs` if it fits, without the bytes of the others, which may not be traced yet."""
    allowed = [
        cut
        for cut in cuts(profile, shape, policy)
        if cut.exact
        and cut.tiles == WHOLE_PICTURE
        and (inputs.at_most is None or cut.order >= inputs.at_most.order)
    ]
    if not allowed:
        return None
    seconds = {
        cut: inputs.speed.seconds(shape, cut.frames_per_chunk) if inputs.speed else 0.0 for cut in allowed
    }
    most = min(seconds.values()) * SAME_SPEED
    first = max((cut for cut in allowed if seconds[cut] <= most), key=lambda cut: cut.frames_per_chunk)
    rung = _rung(profile, shape, first, budget_bytes, inputs)
    return rung if rung.fits else None


def _after_dropping(rung: Rung, budget_bytes: int, policy: Policy, inputs: PlanInputs) -> Rung:
    """The same rung with idle weights dropped from the device; the policy's cap still limits its budget."""
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
        predicted = predicted.beside(kept)
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
    """Whether a rung of tiles needs less than all rungs before it; where tiles are forced, than all tiles."""
    rivals = [each for each in before if not policy.forced or each.tiles.count > 1]
    return all(rung.predicted.upper_bytes < each.predicted.upper_bytes for each in rivals)


def _fastest_first(found: list[Rung]) -> tuple[Rung, ...]:
    """Exact before approximate, whole pictures before tiles, then by predicted seconds.

    Among rungs within 5 % (`SAME_SPEED`) of the fastest of them, larger chunks come first, so that noise in
    the predictions does not decide.
    """
    alike: list[list[Rung]] = []
    for rung in sorted(found, key=lambda rung: (*_kind(rung), rung.predicted_seconds or 0.0)):
        first = alike[-1][0] if alike else None
        if first is not None and _kind(first) == _kind(rung) and _similar_speed(rung, first):
            alike[-1].append(rung)
        else:
            alike.append([rung])
    for rungs_alike in alike:
        rungs_alike.sort(key=lambda rung: (-rung.frames_per_chunk, rung.dropped_bytes))
    return tuple(rung for rungs_alike in alike for rung in rungs_alike)


def _kind(rung: Rung) -> tuple[bool, int]:
    return not rung.exact, rung.tiles.count


def _similar_speed(rung: Rung, fastest: Rung) -> bool:
    return (rung.predicted_seconds or 0.0) <= (fastest.predicted_seconds or 0.0) * SAME_SPEED
