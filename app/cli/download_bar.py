"""Shows on the terminal how far the download of a model is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.models.downloads.download import OnProgress


@contextmanager
def download_bar(what: str = "", first: str | None = None) -> Iterator["OnProgress"]:
    """A bar for the time of the block; give what is yielded to `download`.

    It appears with the first progress, `what` before its numbers, or at once with the text `first`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from app.cli.generate import download_text
    from app.models.downloads.progress import DownloadProgress

    columns = (TextColumn("{task.description:48}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(first or "", total=1.0)

    def seen(progress: DownloadProgress) -> None:
        bar.start()
        text = download_text(progress.as_json())
        waits = "another process downloads: " if progress.waits else ""
        bar.update(task, completed=progress.share, description=f"{waits}{what}{text}")

    if first is not None:
        bar.start()
    try:
        yield seen
    finally:
        bar.stop()
