"""What `framefit doctor` looks at, and what it advises; a file is written and removed, nothing else changed.

findings  what a look gives: a subject, how it stands, and what to do
place     settings against this place: folder, database, port, limits
machine   what jobs run on: driver, torch, devices, encoder, models
"""

from collections.abc import Iterator

from app.config import Settings
from app.doctor.findings import Finding, Standing

__all__ = ["Finding", "Standing", "examine"]


def examine(settings: Settings) -> Iterator[Finding]:
    """Every finding, as it is made: the quick looks first."""
    from app.doctor import machine, place

    yield place.disk(settings)
    yield place.database(settings)
    yield place.port(settings)
    yield from place.limits(settings)
    yield from machine.devices(settings)
    yield machine.torch_build()
    yield machine.encoder()
    yield from machine.models(settings)
