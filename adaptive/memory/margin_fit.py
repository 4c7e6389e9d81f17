"""The arithmetic of memory margins: predicts the bytes of the next decode from finished and failed ones.

Owns observations, failures, and the lines over live bytes that are fitted to them. It does not know which
decodes are compared (see `adaptive.memory.margins`), torch, or how memory is measured.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from adaptive.types import Chunking, PeakEstimate

MIB = 2**20
TRUSTED_OBSERVATIONS = 5
FAILED_RATIO_CAP = 3  # times the cold upper ratio; a failure is never recorded as needing more
# The bound lies above the highest of few observations by this many times their spread: with five
# observations, one in six new ones is higher than all before. From recorded decodes
# (tests/bench/prediction.py).
SPREAD_SHARE = 1.5
QUANTILE = 0.98
# A repeated decode takes what it took before: no repeat in tests/bench/results/repeats-cpu.jsonl took more
# than this above the highest earlier run.
REPEAT_SHARE = 0.03
REPEAT_BYTES = {"cpu": 2 * MIB, "cuda": 32 * MIB}
# A failure counts until this many later observations; a failure of the same decode counts for longer.
FAILURE_LIFETIME = 5
SAME_DECODE_FAILURE_LIFETIME = 20
# A strategy with few observations may need as little, relative to its live bytes, as the lowest quarter of
# the family's decodes. The planner tries it on that assumption where a failure costs one chunk at most.
OPTIMISTIC_QUANTILE = 0.25
FAMILY_QUANTILE = 0.9
# How far a strategy may lie above the family's other strategies. CPU: from recordings-large-cpu.jsonl. CUDA:
# not measured; cuDNN may choose other algorithms for other lengths.
OTHER_STRATEGIES_SHARE = {"cpu": 0.1, "cuda": 0.25}


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a group of observations is weighed against the margin known before.

    With `full_weight_observations` or more, the earlier margin no longer counts. The bound lies above a high
    quantile of the ratios by at least `least_headroom` as a share of it.
    """

    full_weight_observations: int
    least_headroom: float


STRATEGY_FIT = FitSettings(TRUSTED_OBSERVATIONS, 0.08)
# Decodes with equal frame counts and chunk sizes: their ratios lie close together.
CHUNKING_FIT = FitSettings(4, 0.1)


@dataclass(frozen=True, slots=True)
class Margin:
    """Needed bytes as lines over live bytes: a ratio times live bytes, plus a constant.

    `expected` is the median and `upper` the bound that plans use. `hoped_ratio` is an optimistic value, worth
    a try where a failure costs little; None once enough decodes are known. The ratios cover workspace and
    fragmentation, the constants memory outside torch.
    """

    expected_ratio: float
    upper_ratio: float
    expected_constant_bytes: int
    upper_constant_bytes: int
    hoped_ratio: float | None = None

    def apply(self, live_bytes: int) -> PeakEstimate:
        """Live, expected, upper and hoped bytes of a decode with `live_bytes`."""
        expected = round(live_bytes * self.expected_ratio) + self.expected_constant_bytes
        upper = round(live_bytes * self.upper_ratio) + self.upper_constant_bytes
        hoped = None
        if self.hoped_ratio is not None:
            hoped = min(upper, round(live_bytes * self.hoped_ratio) + self.expected_constant_bytes)
        return PeakEstimate(live_bytes, min(expected, upper), upper, hoped_bytes=hoped)

    def raised_above(self, failed_ratio: float) -> "Margin":
        """The margin after a decode failed with `failed_ratio` times its live bytes free; 0 changes nothing.

        Without this, the planner would repeat the plan that failed.
        """
        if not failed_ratio:
            return self
        upper = max(self.upper_ratio, failed_ratio * 1.1)
        expected = min(upper, max(self.expected_ratio, failed_ratio))
        return replace(self, expected_ratio=expected, upper_ratio=upper)


# Margins before any decode is observed. CPU: the resident set of real decodes grew by 1.0 to 1.4 x live bytes
# (convolution scratch). CUDA: cuDNN workspace and fragmentation are reported as 1.0 to 3 x; the first
# out-of-memory or success corrects the margin.
COLD_MARGINS = {
    "cpu": Margin(1.15, 1.4, 4 * MIB, 8 * MIB, 1.15),
    "cuda": Margin(1.25, 1.6, 128 * MIB, 256 * MIB, 1.25),
}
# A learned constant never falls below this, because memory is handed out in whole pages and blocks. CPU: more
# than any recorded decode took outside torch (4.6 MB).
LEAST_CONSTANT_BYTES = {"cpu": 6 * MIB, "cuda": 32 * MIB}


@dataclass(frozen=True, slots=True)
class Observation:
    """One finished decode: predicted bytes of its tensors and the three measured parts beyond them.

    `chunking` is None where it is not known.
    """

    live_bytes: int
    workspace_bytes: int
    fragmentation_bytes: int
    outside_bytes: int
    chunking: Chunking | None = None

    @property
    def ratio(self) -> float:
        """Live bytes, workspace and fragmentation together, over live bytes."""
        return (self.live_bytes + self.workspace_bytes + self.fragmentation_bytes) / self.live_bytes

    @property
    def needed_bytes(self) -> int:
        """All bytes that the decode took."""
        return self.live_bytes + self.workspace_bytes + self.fragmentation_bytes + self.outside_bytes


@dataclass(slots=True)
class Failure:
    """One out-of-memory with `ratio` times its live bytes free. `age` counts later observations."""

    live_bytes: int
    ratio: float
    age: int = 0
    chunking: Chunking | None = None


@dataclass(slots=True)
class StrategyHistory:
    """Finished and failed decodes of one family by one strategy, newest last."""

    observations: list[Observation] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def chunkings(self) -> list[Chunking]:
        """Distinct chunkings of the observations, oldest first."""
        return list(dict.fromkeys(each.chunking for each in self.observations if each.chunking is not None))

    @property
    def tried(self) -> list[tuple[Chunking, int]]:
        """Distinct pairs of chunking and live bytes of all decodes that finished or failed."""
        tried: list[Observation | Failure] = [*self.observations, *self.failures]
        return list(dict.fromkeys((e.chunking, e.live_bytes) for e in tried if e.chunking is not None))

    def matching(self, chunking: Chunking | None, live_bytes: int | None = None) -> list[Observation]:
        """Observations with this chunking and, if given, these live bytes. Empty where `chunking` is None."""
        if chunking is None:
            return []
        return [
            each
            for each in self.observations
            if each.chunking == chunking and live_bytes in (None, each.live_bytes)
        ]


def highest_failed_ratio(failures: Iterable[Failure], lifetime: int = FAILURE_LIFETIME) -> float:
    """The highest ratio of the failures younger than `lifetime` observations; 0 where there is none."""
    return max((each.ratio for each in failures if each.age < lifetime), default=0.0)


def margin_from_family(cold: Margin, family: Sequence[Observation], kind: str) -> Margin:
    """Margin of a strategy before its first decodes, from the `family`'s decodes by any strategy.

    The upper ratio is at least what most of the family's decodes took. The more of them there are, the closer
    it comes to that value plus `OTHER_STRATEGIES_SHARE`. `kind` is "cpu" or "cuda".
    """
    if not family:
        return cold
    ratios = [each.ratio for each in family]
    high = quantile(ratios, FAMILY_QUANTILE)
    upper = max(cold.upper_ratio, high)
    weight = min(1.0, len(family) / TRUSTED_OBSERVATIONS)
    upper = min(upper, weight * high * (1 + OTHER_STRATEGIES_SHARE[kind]) + (1 - weight) * upper)
    return replace(
        cold,
        expected_ratio=min(cold.expected_ratio, upper),
        upper_ratio=upper,
        hoped_ratio=quantile(ratios, OPTIMISTIC_QUANTILE),
    )


def fit_margin(
    seen: Sequence[Observation],
    before: Margin,
    kind: str,
    settings: FitSettings,
    *,
    outside_bytes: Sequence[int],
) -> Margin:
    """Median and upper bound of the observations `seen`; with few of them the margin `before` counts too.

    `outside_bytes`: bytes outside torch in all decodes of the family; they do not depend on the strategy.
    """
    if not seen:
        return before
    weight = min(1.0, len(seen) / settings.full_weight_observations)
    ratios = [each.ratio for each in seen]
    bound = _bound(ratios, settings)
    upper = weight * bound + (1 - weight) * max(before.upper_ratio, bound)
    outside = max(LEAST_CONSTANT_BYTES[kind], round(quantile(outside_bytes, QUANTILE)))
    constant = round(weight * outside + (1 - weight) * max(before.upper_constant_bytes, outside))
    middle = median(ratios)
    return Margin(
        min(middle, upper),
        upper,
        min(round(median([each.outside_bytes for each in seen])), constant),
        constant,
        None if weight == 1.0 else middle,
    )


def _bound(ratios: Sequence[float], settings: FitSettings) -> float:
    """A ratio that hardly any later decode exceeds: a high quantile plus headroom.

    The headroom grows with the spread of the ratios and shrinks as their number grows.
    """
    high, middle = quantile(ratios, QUANTILE), median(ratios)
    few = math.sqrt(settings.full_weight_observations / len(ratios))
    headroom = max(settings.least_headroom * high, SPREAD_SHARE * (high - middle))
    return high + headroom * max(0.5, min(1.0, few))


def estimate_repeat(seen: Sequence[Observation], kind: str) -> PeakEstimate:
    """Estimate for repeating a decode that was `seen` at least once."""
    needs = [each.needed_bytes for each in seen]
    upper = round(max(needs) * (1 + REPEAT_SHARE)) + REPEAT_BYTES[kind]
    return PeakEstimate(seen[0].live_bytes, round(median(needs)), upper)


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile at `share` (0..1), interpolated linearly between neighbouring values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
