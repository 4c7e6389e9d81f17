"""The checks of `framefit doctor`. They write and remove one probe file and change nothing else.

findings  the result of a check: subject, standing, detail, advice
images    check of the images that jobs wait with
place     checks of the data folder, database, port and process limits
machine   checks of driver, GPUs, torch, video encoder and models
"""

from collections.abc import Iterator

from app.config import Settings
from app.doctor.findings import CheckResult, Finding

__all__ = ["CheckResult", "Finding", "examine"]


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield each finding when its check is done, quick checks first."""
    from app.doctor import machine, place
    from app.doctor.images import images

    yield place.disk(settings)
    yield place.database(settings)
    yield from images(settings)
    yield place.port(settings)
    yield from place.limits(settings)
    yield from machine.devices(settings)
    yield machine.torch_build()
    yield machine.encoder()
    yield from machine.models(settings)
