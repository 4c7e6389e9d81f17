"""Formatting of quantities for people."""


def format_bytes(count: int) -> str:
    """Return a byte count in GiB, MiB or KiB with one decimal, or in bytes below 1 KiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"
