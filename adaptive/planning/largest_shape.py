"""The largest video whose decode fits a budget. Pure arithmetic; it does not know torch or devices."""

from bisect import bisect_left
from collections.abc import Callable, Iterable

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
    """Largest video with `like`'s frame count and about its aspect ratio that an allowed rung decodes.

    A rung fits if its upper bound is at most `budget_bytes`. Sizes are multiples of `size_multiple` pixels,
    by default the VAE's spatial ratio. Returns None where not even one such block fits.
    """
    policy = policy or Policy()

    def fits(video: VideoShape) -> bool:
        shape = profile.traits.latent_shape(video)
        try:
            least_first = reversed(cuts(profile, shape, policy))
        except UnsupportedVae:
            return False  # tiles are forced, and the picture is too small for them
        needs = (profile.estimate_cut(shape, cut, residuals).upper_bytes for cut in least_first)
        return any(upper_bytes <= budget_bytes for upper_bytes in needs)

    return largest_that_fits(like, size_multiple or profile.traits.spatial_ratio, fits)


def largest_that_fits(
    like: VideoShape, size_multiple: int, fits: Callable[[VideoShape], bool]
) -> VideoShape | None:
    """Largest video as `largest_shape_that_fits` tries them for which `fits` is true; None for none."""
    sizes = [VideoShape(like.frames, *size) for size in _sizes_below(like, size_multiple)]
    first = bisect_left(sizes, True, key=fits)
    return sizes[first] if first < len(sizes) else None


def _sizes_below(like: VideoShape, step: int) -> Iterable[tuple[int, int]]:
    """Heights and widths of about `like`'s aspect ratio, in order of decreasing area."""
    longer, shorter = max(like.height, like.width), min(like.height, like.width)
    for blocks in range(longer // step, 0, -1):
        other = min(max(1, round(blocks * shorter / longer)), shorter // step)
        long_side, short_side = blocks * step, other * step
        if short_side:
            yield (long_side, short_side) if like.height >= like.width else (short_side, long_side)
