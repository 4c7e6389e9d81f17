"""One question to the NVIDIA driver: its answer, or one kind of failure, whatever `pynvml` raises.

Owns what may come back from a driver: error codes, functions that an old driver lacks, text that is not UTF-8
or has no end, and numbers that mean "not available". This file knows no GPU and decides nothing.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
# A larger number of bytes is a driver's "not available", which is 2^64-1 in some versions.
MOST_BYTES = 2**50
_NO_TEXT = re.compile(r"[^\x21-\x7e\w]+")  # neither visible ASCII nor a letter or digit of any script


class DriverCallFailed(Exception):
    """A call of the driver failed; `code` is NVML's, or None where the call failed in another way."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"NVML code {code}")
        self.code = code


def ask(question: Callable[[], T]) -> T:
    """The driver's answer. Raises `DriverCallFailed`, and nothing else.

    `pynvml` raises `NVMLError` for error codes and functions that the driver lacks, but also
    `UnicodeDecodeError` for text, `MemoryError` for absurd counts, and what ctypes raises.
    """
    try:
        return question()
    except Exception as error:
        code = getattr(error, "value", None)
        raise DriverCallFailed(code if isinstance(code, int) else None) from None


def ask_or(question: Callable[[], T], default: T) -> T:
    """The driver's answer, or `default` where it fails: one missing answer must not hide the others."""
    try:
        return ask(question)
    except DriverCallFailed:
        return default


def ask_text(function: Callable[..., Any], *arguments: Any) -> str:
    """A text of the driver. Empty where it has no readable character. Raises `DriverCallFailed`.

    The driver under WSL returns names that are not UTF-8, on which the function of `pynvml` itself fails:
    this calls the one below it, which returns bytes.
    """
    raw = ask(lambda: getattr(function, "__wrapped__", function)(*arguments))
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    readable = " ".join(_NO_TEXT.sub(" ", text).split())
    return readable if any(letter.isalnum() for letter in readable) else ""


def readable_bytes(count: int, most: int = MOST_BYTES) -> int | None:
    """A number of bytes as the driver gave it, or None where it cannot be one."""
    return int(count) if 0 <= count <= most else None
