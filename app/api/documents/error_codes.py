"""The table of error codes: what each means and what to do about it.

`error_codes.toml` is the one list: the OpenAPI document and docs/http-api.md are made from it, and a test
compares it with the codes in the source.
"""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from app.jobs import Json

Kind = Literal["request", "job"]


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """What is said of one code; `statuses` is empty for the error of a failed job."""

    code: str
    statuses: tuple[int, ...]
    meaning: str
    action: str


@cache
def documented(kind: Kind) -> Sequence[ErrorCode]:
    """Return the codes of refused requests or of failed jobs, in the file's order."""
    with Path(__file__).with_name("error_codes.toml").open("rb") as file:
        table = tomllib.load(file)[kind]
    return tuple(
        ErrorCode(code, tuple(row.get("statuses", ())), row["meaning"], row["action"])
        for code, row in table.items()
    )


def schema(kind: Kind, introduction: str) -> Json:
    """Return the schema of a code: a text, because later versions add codes, with the table beside it."""
    rows = documented(kind)
    return {
        "type": "string",
        "description": f"{introduction}\n\n{_table(rows)}",
        "x-error-codes": [
            {
                "code": row.code,
                **({"statuses": list(row.statuses)} if row.statuses else {}),
                "meaning": row.meaning,
                "remedy": row.action,
            }
            for row in rows
        ],
    }


def _table(rows: Iterable[ErrorCode]) -> str:
    lines = ["| code | status | meaning | what to do |", "|---|---|---|---|"]
    for row in rows:
        statuses = ", ".join(map(str, row.statuses))
        lines.append(f"| `{row.code}` | {statuses} | {row.meaning} | {row.action} |")
    return "\n".join(lines)
