"""Formatting of quantities for people."""

import re


def format_bytes(count: int) -> str:
    """Return a byte count in GiB, MiB or KiB with one decimal, or in bytes below 1 KiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


def in_units(sentence: str) -> str:
    """Return a sentence with its byte counts, such as "2,381,472,917 bytes", in GiB, MiB or KiB."""
    return re.sub(r"(\d[\d,]*) bytes", lambda found: format_bytes(int(found[1].replace(",", ""))), sentence)
