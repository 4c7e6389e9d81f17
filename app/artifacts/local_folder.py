"""Where a job's files are. One folder a job: its latents and its video, each there as a whole or not at all.

Writers make `NAME.part` beside the final name, sync it and rename it; a reader never sees a half-written
file. Knows nothing of what is inside the files.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class JobArtifacts:
    """Paths of one job's files; none of them need exist."""

    folder: Path

    @property
    def latents(self) -> Path:
        """The recorded decode call: everything a later decode needs."""
        return self.folder / "latents.safetensors"

    @property
    def video(self) -> Path:
        """The finished video."""
        return self.folder / "video.mp4"

    @property
    def thumbnail(self) -> Path:
        """A picture of the finished video."""
        return self.folder / "thumbnail.jpg"

    def preview(self, number: int) -> Path:
        """A picture of what is being decoded."""
        return self.folder / f"preview-{number:02}.jpg"

    def previews(self) -> int:
        """How many previews there are: they are numbered from 0."""
        return len(list(self.folder.glob("preview-*.jpg")))

    def make(self) -> "JobArtifacts":
        """Create the folder, durably; leftovers of a killed writer and of an earlier decode are removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in (*self.folder.glob("*.part"), *self.folder.glob("preview-*.jpg")):
            left.unlink(missing_ok=True)
        sync(self.folder.parent)
        return self

    def remove(self) -> None:
        """Delete everything the job left on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


def job_artifacts(jobs_dir: Path, job_id: str) -> JobArtifacts:
    """The files of a job; `ValueError` for an id that would lead out of the jobs folder."""
    folder = jobs_dir / job_id
    if not job_id or folder.parent != jobs_dir or job_id in {".", ".."}:
        raise ValueError(f"not a job id: {job_id!r}")
    return JobArtifacts(folder)


def part_of(path: Path) -> Path:
    """The name under which a file is written before it is whole."""
    return path.with_name(path.name + ".part")


def publish(path: Path) -> None:
    """Turn `NAME.part` into `NAME`: synced, renamed, and the rename itself synced."""
    part = part_of(path)
    sync(part)
    part.replace(path)
    sync(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file, as a whole or not at all."""
    part_of(path).write_bytes(content)
    publish(path)


def sync(path: Path) -> None:
    """Force a file's content, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
