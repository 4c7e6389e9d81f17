"""Which of the queued jobs a worker takes: all, those that are denoised, or all but those left to others.

Owns the conditions for it in SQL. `app.store.claims` and `app.store.backfill` ask with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Share(StrEnum):
    """A share of the queue."""

    ALL = "all"
    DENOISED = "denoised"
    NOT_LEFT = "not_left"


@dataclass(frozen=True, slots=True)
class Part:
    """The part of the queue that a worker takes.

    With `NOT_LEFT`, denoised jobs of `left_models` that need at most `left_bytes` are left to other workers.
    """

    share: Share = Share.ALL
    left_models: Sequence[str] = ()
    left_bytes: int = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the condition."""
        if self.share is not Share.NOT_LEFT:
            return {}
        return {"left_models": list(self.left_models), "left_bytes": self.left_bytes}


WHOLE_QUEUE = Part()
DENOISED_ONLY = Part(Share.DENOISED)

_LEFT = """ and (latents_path is null or kept_from_decoders or coalesce(needed_bytes, 0) > :left_bytes
    or {other_model})"""
_CONDITIONS = {
    Share.ALL: "",
    Share.DENOISED: " and latents_path is not null and not kept_from_decoders",
    Share.NOT_LEFT: _LEFT,
}
# In SQL that SQLAlchemy expands, and for a statement that PostgreSQL gets as it is.
CONDITIONS = {
    share: condition.format(other_model="model not in :left_models")
    for share, condition in _CONDITIONS.items()
}
CONDITIONS_AT_ONCE = {
    share: condition.format(other_model="model <> all(cast(:left_models as text[]))")
    for share, condition in _CONDITIONS.items()
}
