"""The result of a check."""

from dataclasses import dataclass
from enum import StrEnum

from app.jobs import Json


class CheckResult(StrEnum):
    """The result of a check: OK, a note that does not affect jobs, or a fault that prevents them."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `advice` says what to do if it is not OK."""

    subject: str
    standing: CheckResult
    detail: str
    advice: str = ""

    def as_json(self) -> Json:
        """Return the finding as JSON."""
        return {
            "subject": self.subject,
            "standing": self.standing.value,
            "detail": self.detail,
            "advice": self.advice,
        }


def ok(subject: str, detail: str) -> Finding:
    """Return a finding without a fault."""
    return Finding(subject, CheckResult.OK, detail)


def note(subject: str, detail: str, advice: str) -> Finding:
    """Return a finding that does not prevent jobs."""
    return Finding(subject, CheckResult.NOTE, detail, advice)


def wrong(subject: str, detail: str, advice: str) -> Finding:
    """Return a finding that prevents jobs from running."""
    return Finding(subject, CheckResult.WRONG, detail, advice)
