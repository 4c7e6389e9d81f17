"""The arithmetic of margins: from what finished and failed decodes took to what the next one may take.

Owns: observations, failures, and the lines over live bytes that are fitted to them. Must not know: which
decodes are compared (`adaptive.memory.margins`), torch, how anything is measured.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from adaptive.types import Chunking, PeakEstimate

MIB = 2**20
TRUSTED_OBSERVATIONS = 5
MOST_BELIEVED = 3  # times the cold bound
# Above the highest of few observations, in units of their spread and as a share of the whole: with five, one
# in six new ones is higher than all before. From recorded decodes (tests/bench/prediction.py).
SPREAD_SHARE = 1.5
QUANTILE = 0.98
# The very same decode again takes what it took: of the repeats in tests/bench/results/repeats-cpu.jsonl none
# took more than this above the highest before.
AGAIN_SHARE = 0.03
AGAIN_BYTES = {"cpu": 2 * MIB, "cuda": 32 * MIB}
# Observations until a failure no longer counts; one of the very same decode is remembered for longer.
FRESH = 5
FRESH_SAME = 20
# Ways that were hardly taken yet may need as little, next to their live bytes, as a quarter of the family's
# decodes did: what costs a chunk at most is tried for that.
HOPE = 0.25
FAMILY_QUANTILE = 0.9
# Above the family's other strategies. CPU: what its own took in recordings-large-cpu.jsonl. CUDA: not
# measured; cuDNN may take other algorithms for other lengths.
OTHERS_SHARE = {"cpu": 0.1, "cuda": 0.25}


@dataclass(frozen=True, slots=True)
class Trust:
    """How many observations stand for themselves, and the least share that their bound lies above them."""

    observations: int
    least_share: float


OF_STRATEGY = Trust(TRUSTED_OBSERVATIONS, 0.08)
# Decodes of as many frames, cut up in the same way: their ratios lie close together.
OF_CHUNKING = Trust(4, 0.1)


@dataclass(frozen=True, slots=True)
class Margin:
    """Bytes needed as lines over live bytes: `expected` is the middle, `upper` the bound plans are made with,
    `hoped` (None: enough is known) what is worth a try where failing costs little.

    The ratios hold workspace and fragmentation, the constants what lies outside torch.
    """

    expected_ratio: float
    upper_ratio: float
    expected_constant_bytes: int
    upper_constant_bytes: int
    hoped_ratio: float | None = None

    def apply(self, live_bytes: int) -> PeakEstimate:
        """Live, expected, upper and hoped bytes."""
        expected = round(live_bytes * self.expected_ratio) + self.expected_constant_bytes
        upper = round(live_bytes * self.upper_ratio) + self.upper_constant_bytes
        hoped = None
        if self.hoped_ratio is not None:
            hoped = min(upper, round(live_bytes * self.hoped_ratio) + self.expected_constant_bytes)
        return PeakEstimate(live_bytes, min(expected, upper), upper, hoped_bytes=hoped)

    def lifted(self, too_little: float) -> "Margin":
        """After a failure with this ratio free: trying the same again would only fail again."""
        if not too_little:
            return self
        upper = max(self.upper_ratio, too_little * 1.1)
        expected = min(upper, max(self.expected_ratio, too_little))
        return replace(self, expected_ratio=expected, upper_ratio=upper)


# Before anything is learned. CPU: resident-set growth of real decodes was 1.0 to 1.4 x live bytes
# (convolution scratch). CUDA: cuDNN workspace and fragmentation are reported as 1.0 to 3 x; the first
# out-of-memory or success corrects it.
COLD_MARGINS = {
    "cpu": Margin(1.15, 1.4, 4 * MIB, 8 * MIB, 1.15),
    "cuda": Margin(1.25, 1.6, 128 * MIB, 256 * MIB, 1.25),
}
# What the constant never falls below once learned: pages and blocks are handed out whole. CPU: above all that
# was recorded outside torch (4.6 MB).
LEAST_CONSTANT_BYTES = {"cpu": 6 * MIB, "cuda": 32 * MIB}


@dataclass(frozen=True, slots=True)
class Observation:
    """One finished decode: bytes of its tensors as predicted, the three parts beyond them, and how it was cut
    up in time, where that is known.
    """

    live_bytes: int
    workspace_bytes: int
    fragmentation_bytes: int
    outside_bytes: int
    chunking: Chunking | None = None

    @property
    def ratio(self) -> float:
        """What grows with the decode, over its live bytes."""
        return (self.live_bytes + self.workspace_bytes + self.fragmentation_bytes) / self.live_bytes

    @property
    def needed_bytes(self) -> int:
        """All it took."""
        return self.live_bytes + self.workspace_bytes + self.fragmentation_bytes + self.outside_bytes


@dataclass(slots=True)
class Failure:
    """One out-of-memory: `ratio` times its live bytes were too little. `age` counts later observations."""

    live_bytes: int
    ratio: float
    age: int = 0
    chunking: Chunking | None = None


@dataclass(slots=True)
class Learned:
    """What a family's decodes by one strategy taught, newest last."""

    observations: list[Observation] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def chunkings(self) -> list[Chunking]:
        """Of all observations, each once."""
        return list(dict.fromkeys(each.chunking for each in self.observations if each.chunking is not None))

    @property
    def tried(self) -> list[tuple[Chunking, int]]:
        """Chunking and live bytes of every decode that finished or failed, each once."""
        tried: list[Observation | Failure] = [*self.observations, *self.failures]
        return list(dict.fromkeys((e.chunking, e.live_bytes) for e in tried if e.chunking is not None))

    def of(self, chunking: Chunking | None, live_bytes: int | None = None) -> list[Observation]:
        """Observations cut up so, of one size where `live_bytes` are given; none where that is not known."""
        if chunking is None:
            return []
        return [
            each
            for each in self.observations
            if each.chunking == chunking and live_bytes in (None, each.live_bytes)
        ]


def too_little(failures: Iterable[Failure], fresh: int = FRESH) -> float:
    """The highest ratio that failed lately; 0 where none did."""
    return max((each.ratio for each in failures if each.age < fresh), default=0.0)


def as_others(cold: Margin, family: Sequence[Observation], kind: str) -> Margin:
    """Before a strategy's first decodes: what the family's others took is no less likely here, and what is
    far above it hardly more so, the more of them there are.
    """
    if not family:
        return cold
    ratios = [each.ratio for each in family]
    high = quantile(ratios, FAMILY_QUANTILE)
    upper = max(cold.upper_ratio, high)
    trust = min(1.0, len(family) / TRUSTED_OBSERVATIONS)
    upper = min(upper, trust * high * (1 + OTHERS_SHARE[kind]) + (1 - trust) * upper)
    return replace(
        cold,
        expected_ratio=min(cold.expected_ratio, upper),
        upper_ratio=upper,
        hoped_ratio=quantile(ratios, HOPE),
    )


def fitted(
    seen: Sequence[Observation], before: Margin, kind: str, trust_in: Trust, *, outside_bytes: Sequence[int]
) -> Margin:
    """Median and a high quantile of what was `seen`; with few of them the margin `before` them counts, too.

    `outside_bytes`: what lay outside torch in all decodes of the family, which does not depend on the way.
    """
    if not seen:
        return before
    trust = min(1.0, len(seen) / trust_in.observations)
    ratios = [each.ratio for each in seen]
    bound = _bound(ratios, trust_in)
    upper = trust * bound + (1 - trust) * max(before.upper_ratio, bound)
    outside = max(LEAST_CONSTANT_BYTES[kind], round(quantile(outside_bytes, QUANTILE)))
    constant = round(trust * outside + (1 - trust) * max(before.upper_constant_bytes, outside))
    middle = median(ratios)
    return Margin(
        min(middle, upper),
        upper,
        min(round(median([each.outside_bytes for each in seen])), constant),
        constant,
        None if trust == 1.0 else middle,
    )


def _bound(ratios: Sequence[float], trust: Trust) -> float:
    """A ratio that hardly any later decode exceeds: a high quantile, and on top a part of the spread that
    shrinks as more is seen.
    """
    high, middle = quantile(ratios, QUANTILE), median(ratios)
    few = math.sqrt(trust.observations / len(ratios))
    return high + max(trust.least_share * high, SPREAD_SHARE * (high - middle)) * max(0.5, min(1.0, few))


def again(seen: Sequence[Observation], kind: str) -> PeakEstimate:
    """What a decode takes that was done before, `seen` at least once."""
    needs = [each.needed_bytes for each in seen]
    upper = round(max(needs) * (1 + AGAIN_SHARE)) + AGAIN_BYTES[kind]
    return PeakEstimate(seen[0].live_bytes, round(median(needs)), upper)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies, on the line between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
