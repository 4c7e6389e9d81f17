"""Regret of a finished decode: the seconds that a faster rung would have saved, judged by measured memory.

Pure arithmetic on the rungs that the plan was chosen from. It does not know torch or jobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from adaptive.planning.planner import Rung, describe_rung, format_mebibytes
from adaptive.types import DecodePlan


@dataclass(frozen=True, slots=True)
class Regret:
    """Seconds that a faster rung would have saved (0 where none is known), and the explanation."""

    seconds: float
    detail: str


def regret_of(
    plan: DecodePlan, ladder: Sequence[Rung], *, measured_bytes: int | None, seconds: float
) -> Regret:
    """Regret of a decode that ran as planned, took `seconds`, and needed `measured_bytes`.

    `ladder` holds all rungs, fastest first, with the predictions that the plan was made with. The decode's
    ratio of measured to predicted live bytes is assumed for the faster rungs too, and so is its ratio of
    measured to predicted seconds.
    """
    chosen = next((rung for rung in ladder if _is_plan(rung, plan)), None)
    if chosen is None or measured_bytes is None:
        return Regret(0.0, "not known: memory was not measured on this way")
    faster = list(ladder[: ladder.index(chosen)])
    if not faster:
        return Regret(0.0, "none: it ran the fastest way")
    share = max(1.0, measured_bytes / max(1, plan.predicted.live_bytes))
    room = plan.budget_bytes
    fitting = [rung for rung in faster if rung.predicted.live_bytes * share <= room + rung.dropped_bytes]
    if not fitting:
        need = min(round(rung.predicted.live_bytes * share) for rung in faster)
        return Regret(0.0, f"none: every faster way needed {format_mebibytes(need)} or more")
    best = fitting[0]
    needed, had = round(best.predicted.live_bytes * share), room + best.dropped_bytes
    text = f"{describe_rung(best)} would have fitted: it needed about {format_mebibytes(needed)} of "
    text += format_mebibytes(had)
    if not best.predicted_seconds or not chosen.predicted_seconds:
        return Regret(0.0, f"{text}; how much faster is not known yet")
    scale = seconds / (chosen.predicted_seconds - chosen.reload_seconds)  # `seconds` are the decode's alone
    best_seconds = scale * (best.predicted_seconds - best.reload_seconds) + best.reload_seconds
    saved = max(0.0, seconds + chosen.reload_seconds - best_seconds)
    return Regret(round(saved, 4), f"{text}, and would have saved about {saved:.2g} s")


def _is_plan(rung: Rung, plan: DecodePlan) -> bool:
    return rung.cut == plan.cut and rung.dropped_bytes == plan.dropped_bytes
