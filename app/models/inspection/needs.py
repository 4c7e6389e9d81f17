"""The memory that components need on a card, as they are stored and computed in bf16."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.models.files.architectures.recognition import Part
from app.models.inspection.inspected import BYTES_OF_BF16, Inspected

# The memory of a process on a card before its first tensor: CUDA's context and the libraries' kernels.
CONTEXT_BYTES = 600 * 2**20


@dataclass(frozen=True, slots=True)
class Need:
    """One component. `bf16_bytes` are those of its weights when all of them are converted."""

    file: str
    component: str
    stored_bytes: int
    bf16_bytes: int

    def verdict(self, free_bytes: int) -> str:
        """How it fits into so many bytes, beside nothing else."""
        if self.bf16_bytes <= free_bytes:
            return "fits"
        if self.stored_bytes <= free_bytes:
            return "fits as stored, not in bf16"
        return "does not fit: its layers would pass through the card in groups"


def needs_of(files: Sequence[Inspected]) -> list[Need]:
    """What each component needs, in the order of the files."""
    return [_need(file.name, part) for file in files for part in file.parts]


def _need(name: str, part: Part) -> Need:
    component = part.architecture.component if part.architecture else ""
    return Need(name, component, part.stored_bytes, BYTES_OF_BF16 * part.elements)


def needs_document(needs: Sequence[Need], card: str, card_bytes: int | None) -> dict[str, Any]:
    """The needs against a card of that many bytes, as JSON values; what fits is None without a card."""
    free = None if card_bytes is None else max(0, card_bytes - CONTEXT_BYTES)
    stored, computed = (
        sum(values) for values in zip(*((n.stored_bytes, n.bf16_bytes) for n in needs), strict=True)
    )
    return {
        "card": card,
        "card_bytes": card_bytes,
        "free_bytes": free,
        "stored_bytes": stored,
        "bf16_bytes": computed,
        "all_fit_as_stored": None if free is None else stored <= free,
        "all_fit_in_bf16": None if free is None else computed <= free,
        "components": [
            {
                "file": need.file,
                "component": need.component,
                "stored_bytes": need.stored_bytes,
                "bf16_bytes": need.bf16_bytes,
                "verdict": None if free is None else need.verdict(free),
            }
            for need in needs
        ],
    }
