"""The largest video that some way of decoding gets into a budget. Pure arithmetic; must not know torch,
devices.
"""

from bisect import bisect_left
from collections.abc import Iterable

from adaptive.errors import UnsupportedVae
from adaptive.memory.margins import LearnedMargins
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.policy import Policy, cuts
from adaptive.types import VideoShape


def largest_shape_that_fits(
    profile: MemoryProfile,
    like: VideoShape,
    budget_bytes: int,
    policy: Policy | None = None,
    *,
    residuals: LearnedMargins | None = None,
    size_multiple: int | None = None,
) -> VideoShape | None:
    """Largest video of `like`'s frame count and about its aspect that some allowed rung decodes in
    `budget_bytes`; None where not even one block does.

    Sizes are multiples of `size_multiple` (the VAE's own spatial ratio unless the pipeline asks for more).
    """
    policy, step = policy or Policy(), size_multiple or profile.traits.spatial_ratio

    def fits(height: int, width: int) -> bool:
        shape = profile.traits.latent_shape(VideoShape(like.frames, height, width))
        try:
            least_first = reversed(cuts(profile, shape, policy))
        except UnsupportedVae:
            return False  # too small to be tiled, and tiles are forced
        needs = (profile.estimate_cut(shape, cut, residuals).upper_bytes for cut in least_first)
        return any(upper_bytes <= budget_bytes for upper_bytes in needs)

    sizes = list(_sizes_below(like, step))
    first = bisect_left(sizes, True, key=lambda size: fits(*size))
    return VideoShape(like.frames, *sizes[first]) if first < len(sizes) else None


def _sizes_below(like: VideoShape, step: int) -> Iterable[tuple[int, int]]:
    """Sizes of about `like`'s aspect, largest first, each smaller in area than the one before."""
    longer, shorter = max(like.height, like.width), min(like.height, like.width)
    for blocks in range(longer // step, 0, -1):
        other = min(max(1, round(blocks * shorter / longer)), shorter // step)
        long_side, short_side = blocks * step, other * step
        if short_side:
            yield (long_side, short_side) if like.height >= like.width else (short_side, long_side)
