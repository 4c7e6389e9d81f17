"""What a look gives."""

from dataclasses import dataclass
from enum import StrEnum

from app.jobs import Json


class Standing(StrEnum):
    """How a thing stands: as it should; worth knowing, jobs run all the same; in the way of jobs."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `advice` says what to do where it is not right."""

    subject: str
    standing: Standing
    detail: str
    advice: str = ""

    def as_json(self) -> Json:
        """JSON values."""
        return {
            "subject": self.subject,
            "standing": self.standing.value,
            "detail": self.detail,
            "advice": self.advice,
        }


def ok(subject: str, detail: str) -> Finding:
    """As it should be."""
    return Finding(subject, Standing.OK, detail)


def note(subject: str, detail: str, advice: str) -> Finding:
    """Worth knowing."""
    return Finding(subject, Standing.NOTE, detail, advice)


def wrong(subject: str, detail: str, advice: str) -> Finding:
    """In the way of jobs."""
    return Finding(subject, Standing.WRONG, detail, advice)
