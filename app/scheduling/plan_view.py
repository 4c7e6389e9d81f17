"""Plans and rungs as clients see them.

Owns the JSON keys and the texts that explain each rung. Decides nothing.
"""

from collections.abc import Sequence

from adaptive.planning.planner import Rung, format_mebibytes
from adaptive.types import DecodePlan, SpatialTiles
from app.jobs import Json


def plan_json(plan: DecodePlan) -> Json:
    """The JSON of a plan that fits now."""
    return {
        "fits_now": True,
        "strategy": plan.strategy,
        "frames_per_chunk": plan.frames_per_chunk,
        "latent_frames": plan.latent_frames,
        "tiles": tiles_json(plan.tiles),
        "exact": plan.exact,
        "reason": plan.reason,
        "detail": plan.detail,
        "predicted_peak_bytes": plan.predicted.upper_bytes,
        "predicted_live_bytes": plan.predicted.live_bytes,
        "parked_host_bytes": plan.predicted.host_bytes,
        "predicted_seconds": plan.predicted_seconds,
        "dropped_bytes": plan.dropped_bytes,
        "budget_bytes": plan.budget_bytes,
        "free_bytes": plan.free_bytes,
    }


def tiles_json(tiles: SpatialTiles) -> Json:
    """The JSON of how many parts each frame is cut into."""
    return {"rows": tiles.rows, "columns": tiles.columns}


def rungs_json(ladder: Sequence[Rung], plan: Json) -> list[Json]:
    """The JSON of every rung, fastest first; `why` says why `plan` chose it or not."""
    chosen = next((rung for rung in ladder if _is_planned(rung, plan)), None)
    budget_bytes = int(plan.get("budget_bytes") or 0)
    return [
        {
            "strategy": rung.strategy,
            "frames_per_chunk": rung.frames_per_chunk,
            "tiles": tiles_json(rung.tiles),
            "exact": rung.exact,
            "dropped_bytes": rung.dropped_bytes,
            "predicted_peak_bytes": rung.predicted.upper_bytes,
            "predicted_seconds": rung.predicted_seconds,
            "fits_now": rung.fits,
            "chosen": rung is chosen,
            "why": _why(rung, chosen, budget_bytes),
        }
        for rung in ladder
    ]


def _is_planned(rung: Rung, plan: Json) -> bool:
    """Whether the plan chose this rung. A plan that waits for memory chose none."""
    names = ("frames_per_chunk", "exact", "dropped_bytes")
    same = all(plan.get(name) == getattr(rung, name) for name in names)
    return same and plan.get("tiles") == tiles_json(rung.tiles)


def _why(rung: Rung, chosen: Rung | None, budget_bytes: int) -> str:
    if rung is chosen:
        return "the fastest that fits" if rung.fits else "probably fits, and is faster on average"
    if not rung.fits:
        available = format_mebibytes(budget_bytes + rung.dropped_bytes)
        return f"needs up to {format_mebibytes(rung.predicted.upper_bytes)}; {available} are available"
    if not rung.exact:
        return "changes pixels, and an exact option fits"
    if chosen is not None and rung.predicted_seconds and chosen.predicted_seconds:
        return f"takes {rung.predicted_seconds:.2g} s; the chosen option {chosen.predicted_seconds:.2g} s"
    return "fits, but needs more passes"
