"""Tables and summaries of the results of `tests/bench/gpu.py`: decodes on cards of several sizes.

Pure functions of the results; they do not know devices or how anything was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT, FRAMEFIT = "diffusers default", "framefit"
# Framefit counts as fastest if it takes at most this multiple of the fastest time.
WITHIN = 1.05
HEAD = (
    "card",
    "case",
    "diffusers default",
    "best manual setting",
    "framefit",
    "of fastest",
    "peak GiB",
    "measured / predicted",
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CaseResults:
    """The results of every setting for one case on one card, from one results file."""

    card_gib: float
    case: str
    rows: tuple[Row, ...]

    def row_of(self, name: str) -> Row | None:
        """Return the row of that setting, or None if it was not run."""
        return next((row for row in self.rows if row["way"] == name), None)

    @property
    def best_manual(self) -> Row | None:
        """The fastest of diffusers' manual settings that succeeded, or None."""
        manual = [row for row in self.rows if row["way"] not in (DEFAULT, FRAMEFIT) and row["ok"]]
        return min(manual, key=lambda row: float(row["seconds"]), default=None)

    @property
    def ratio(self) -> float | None:
        """Framefit's seconds divided by those of the fastest setting that succeeded, Framefit included.

        None if Framefit failed.
        """
        own = self.row_of(FRAMEFIT)
        if own is None or not own["ok"]:
            return None
        return float(own["seconds"] / min(row["seconds"] for row in self.rows if row["ok"]))

    @property
    def lost(self) -> bool:
        """Whether Framefit failed and another setting succeeded."""
        return self.ratio is None and any(row["ok"] for row in self.rows)

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table's line."""
        manual, own = self.best_manual, self.row_of(FRAMEFIT)
        named = f"{manual['way']}: {_seconds(manual)}" if manual else "-"
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        return (
            f"{self.card_gib:g} GiB",
            self.case,
            _seconds(self.row_of(DEFAULT)),
            named,
            _seconds(own, with_plan=True),
            ratio,
            _peak(own),
            _prediction(own),
        )


def group_by_case(document: dict[str, Any]) -> list[CaseResults]:
    """Group the rows by card and case, in file order. Raises `ValueError` for other documents."""
    if not isinstance(document.get("stamp"), dict) or not isinstance(document.get("rows"), list):
        raise ValueError("not a results file of tests/bench/gpu.py: it has no stamp or no rows")
    groups: dict[tuple[float, str], list[Row]] = {}
    for row in document["rows"]:
        groups.setdefault((row["card_gib"], row["case"]), []).append(row)
    return [CaseResults(card, case, tuple(rows)) for (card, case), rows in groups.items()]


def stamp_line(document: dict[str, Any]) -> str:
    """Return the hardware and versions in one line."""
    return ", ".join(f"{name} {value}" for name, value in document["stamp"].items())


def summary_line(found: Sequence[CaseResults]) -> str:
    """Return a sentence: how often Framefit succeeded if any setting did, and how often it was fastest."""
    possible = [each for each in found if any(row["ok"] for row in each.rows)]
    succeeded = [each for each in possible if not each.lost]
    fastest = [each for each in possible if each.ratio is not None and each.ratio <= WITHIN]
    return (
        f"framefit succeeded in {len(succeeded)} of the {len(possible)} cases in which any setting did; "
        f"it was the fastest, or within {WITHIN - 1:.0%} of the fastest, in {len(fastest)}"
    )


def side_by_side(first: Sequence[CaseResults], second: Sequence[CaseResults]) -> list[tuple[str, ...]]:
    """Return lines of card, case, Framefit's seconds in both files, and the second divided by the first."""
    others = {(each.card_gib, each.case): each.row_of(FRAMEFIT) for each in second}
    lines: list[tuple[str, ...]] = []
    for each in first:
        one, other = each.row_of(FRAMEFIT), others.get((each.card_gib, each.case))
        both = one is not None and other is not None and one["ok"] and other["ok"]
        change = f"{other['seconds'] / one['seconds']:.2f}" if both and one and other else "-"
        lines.append((f"{each.card_gib:g} GiB", each.case, _seconds(one), _seconds(other), change))
    return lines


def _seconds(row: Row | None, *, with_plan: bool = False) -> str:
    if row is None:
        return "-"
    if not row["ok"]:
        return "out of memory" if row["error"] == "out_of_memory" else "failed"
    text = f"{row['seconds']:.2f} s"
    plan = row.get("plan") if with_plan else None
    return f"{text} {plan['strategy']} {plan['frames_per_chunk']}" if plan else text


def _peak(row: Row | None) -> str:
    if row is None or not row["ok"]:
        return "-"
    peak = next(
        (row[name] for name in ("driver_bytes", "resident_bytes", "allocated_bytes") if row.get(name)), None
    )
    return "-" if peak is None else f"{peak / 2**30:.2f}"


def _prediction(row: Row | None) -> str:
    plan = (row or {}).get("plan")
    if not plan or not plan.get("measured_bytes"):
        return "-"
    return f"{plan['measured_bytes'] / plan['expected_bytes']:.2f}"
