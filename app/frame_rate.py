"""Frame rates as exact fractions: how they are read, rounded to a standard, and written."""

from fractions import Fraction
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

MIN_RATE: Final = 1
MAX_RATE: Final = 120
MAX_DENOMINATOR: Final = 100_000
# NTSC plays these rates slower by 1000/1001; 23.976, 23.98 and 29.97 are its usual names.
_NTSC: Final = tuple(Fraction(1000 * rate, 1001) for rate in (12, 15, 24, 30, 48, 60, 120))
_NAMED_WITHIN: Final = Fraction(1, 200)
# Containers store durations in whole milliseconds or nanoseconds.
_ROUNDED_WITHIN: Final = Fraction(1, 50_000)


def frame_rate(value: object) -> Fraction:
    """The rate that `value` names: a number, or text such as "24", "23.976" or "24000/1001".

    A decimal within 0.005 of an NTSC rate means that rate. Raises `ValueError`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction):
        raise ValueError(_expected(value))
    try:
        text = value.strip() if isinstance(value, str) else str(value)
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(_expected(value)) from None
    if "/" not in text and rate.denominator > 1:
        rate = next((ntsc for ntsc in _NTSC if abs(ntsc - rate) <= _NAMED_WITHIN), rate)
    if not MIN_RATE <= rate <= MAX_RATE or rate.denominator > MAX_DENOMINATOR:
        raise ValueError(_expected(value))
    return rate


def nearest_standard(rate: Fraction) -> Fraction:
    """A rate that a container declares, without the error of its rounding."""
    whole = Fraction(round(rate))
    standards = (whole, *_NTSC)
    return next((each for each in standards if abs(each - rate) <= _ROUNDED_WITHIN * rate), rate)


def rate_as_json(rate: Fraction) -> int | str:
    """A whole rate as a number, any other as text such as "24000/1001"."""
    return rate.numerator if rate.denominator == 1 else str(rate)


def rate_as_number(rate: Fraction) -> int | float:
    """The rate for arithmetic that knows no fractions."""
    return rate.numerator if rate.denominator == 1 else float(rate)


def _expected(value: object) -> str:
    given = str(value)[:50]
    return f"fps must be {MIN_RATE} to {MAX_RATE}, such as 24, 23.976 or 24000/1001, not {given!r}"


_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "number", "minimum": MIN_RATE, "maximum": MAX_RATE},
        {"type": "string", "pattern": r"^[0-9]{1,8}(\.[0-9]{1,5}|/[0-9]{1,6})?$"},
    ],
    "description": "Frames per second: a number or a fraction such as 24000/1001.",
}
FrameRate = Annotated[
    Fraction, BeforeValidator(frame_rate), PlainSerializer(rate_as_json), WithJsonSchema(_SCHEMA)
]
