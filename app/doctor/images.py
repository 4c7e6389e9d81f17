"""Check that jobs which wait still have their images, for example after a backup was restored."""

from collections.abc import Iterator

from app.config import ConfigError, Settings
from app.doctor.findings import Finding, wrong


def images(settings: Settings) -> Iterator[Finding]:
    """Yield a finding if images of jobs that wait or run are missing."""
    from app.store.pictures.lost import lost_images

    try:
        lost, needed = lost_images(settings.resolved_database_url, settings.data_dir)
    except (ConfigError, OSError, ValueError):
        return  # the check of the database says so
    if lost:
        detail = f"{lost} of the {needed} images that queued and running jobs need are missing"
        yield wrong("images", detail, "Restore pictures/ of the data folder from the backup, too.")
