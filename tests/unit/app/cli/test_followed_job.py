"""What `framefit generate` says while it follows a job."""

import io
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from app.cli.generate import _followed


class Followed:
    """A service whose job gives way twice."""

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job as it changes."""
        for gave_way in (None, "gave way; 12 of 30", "gave way; 12 of 30", None, "gave way; 20 of 30", None):
            status = "queued" if gave_way else "running"
            yield {
                "id": job_id,
                "stage": "denoising",
                "status": status,
                "progress": 0.5,
                "gave_way": gave_way,
            }


def test_each_time_that_the_job_gives_way_is_told_once() -> None:
    text = io.StringIO()
    job = {"id": "1", "stage": "queued", "status": "queued", "progress": 0.0}
    _followed(Followed(), job, Console(file=text))
    told = [line for line in text.getvalue().splitlines() if "gave way" in line]
    assert told == ["The job gave way; 12 of 30.", "The job gave way; 20 of 30."]
