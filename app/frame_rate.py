"""Frame rates as exact fractions: how they are read, rounded to a standard, and written."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

MIN_RATE: Final = Fraction(1)
MAX_RATE: Final = Fraction(120)
MAX_DENOMINATOR: Final = 100_000
# NTSC plays these rates slower by 1000/1001; 23.976, 23.98 and 29.97 are its usual names.
_NTSC: Final = tuple(Fraction(1000 * rate, 1001) for rate in (12, 15, 24, 30, 48, 60, 120))
_NAMED_WITHIN: Final = Fraction(1, 200)
# Containers store durations in whole nanoseconds or coarser.
_ROUNDED_WITHIN: Final = Fraction(1, 50_000)
_PATTERN: Final = r"[0-9]{1,9}(\.[0-9]{1,20}|/0{0,3}[1-9][0-9]{0,8})?"
_TEXT: Final = re.compile(_PATTERN)
REMEMBERED_CHARACTERS: Final = 40


def frame_rate(value: object, *, least: Fraction = MIN_RATE, most: Fraction = MAX_RATE) -> Fraction:
    """The rate that `value` names: a number, or text such as "24", "23.976" or "24000/1001".

    A decimal within 0.005 of an NTSC rate means that rate. Raises `ValueError`.
    """
    is_short_text = isinstance(value, str) and len(value) <= REMEMBERED_CHARACTERS
    if is_short_text or (isinstance(value, int) and 0 <= value <= most):
        return _remembered(value, least, most)
    return _frame_rate(value, least, most)


@lru_cache(maxsize=256, typed=True)
def _remembered(value: object, least: Fraction, most: Fraction) -> Fraction:
    # A list of jobs reads the same few rates again and again.
    return _frame_rate(value, least, most)


def _frame_rate(value: object, least: Fraction, most: Fraction) -> Fraction:
    rate = _fraction(value)
    if rate is not None and rate.denominator > 1 and "/" not in str(value):
        rate = next((ntsc for ntsc in _NTSC if abs(ntsc - rate) <= _NAMED_WITHIN), rate)
        rate = rate.limit_denominator(MAX_DENOMINATOR)
    if rate is None or not least <= rate <= most or rate.denominator > MAX_DENOMINATOR:
        given = str(value)[:50] if isinstance(value, str | float) else type(value).__name__
        raise ValueError(f"must be {least} to {most}, such as 24, 23.976 or 24000/1001, not {given!r}")
    return rate


def nearest_standard(rate: Fraction) -> Fraction:
    """A rate that a container declares, without the error of its rounding."""
    standards = (Fraction(round(rate)), *_NTSC)
    return next((each for each in standards if abs(each - rate) <= _ROUNDED_WITHIN * rate), rate)


def rate_as_json(rate: Fraction) -> int | str:
    """A whole rate as a number, any other as text such as "24000/1001"."""
    return rate.numerator if rate.denominator == 1 else str(rate)


def rate_as_number(rate: Fraction) -> int | float:
    """The rate for code that knows no fractions."""
    return rate.numerator if rate.denominator == 1 else float(rate)


def _fraction(value: object) -> Fraction | None:
    if isinstance(value, Fraction):
        return value
    if isinstance(value, str):
        text = value.strip()
        return Fraction(text) if _TEXT.fullmatch(text) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e9:
        return Fraction(str(value))
    return None


_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "number", "minimum": int(MIN_RATE), "maximum": int(MAX_RATE)},
        {"type": "string", "pattern": f"^{_PATTERN}$"},
    ],
}
FrameRate = Annotated[
    Fraction,
    BeforeValidator(frame_rate),
    PlainSerializer(rate_as_json),
    WithJsonSchema(_SCHEMA),
    Field(
        description="Frames per second: a number, or a fraction such as 24000/1001; 23.976 means that one."
    ),
]
