"""The files of a job: latents, video and pictures, in one local folder a job.

All files are written atomically. Writers write `NAME.part` in the same folder, sync it and rename it, so a
reader never sees a partial file. Must not know what is inside the files.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class JobArtifacts:
    """Paths of one job's files, which need not exist."""

    folder: Path

    @property
    def latents(self) -> Path:
        """The recorded decode calls with their latents: all that a later decode needs."""
        return self.folder / "latents.safetensors"

    @property
    def denoise_inputs(self) -> Path:
        """What the encoders gave to the denoise; part of its checkpoint."""
        return self.folder / "denoise-inputs.safetensors"

    @property
    def denoise_steps(self) -> Path:
        """The checkpoint of the denoise: latents, schedulers and random states after a step."""
        return self.folder / "denoise-steps.safetensors"

    @property
    def video(self) -> Path:
        """The finished video."""
        return self.folder / "video.mp4"

    def converted(self, form: str) -> Path:
        """The video in another format, such as webm, made of the mp4 when it is asked for."""
        return self.folder / f"video.{form}"

    @property
    def thumbnail(self) -> Path:
        """A picture of the finished video."""
        return self.folder / "thumbnail.jpg"

    def frame(self, which: str) -> Path:
        """The video's "first" or "last" frame as the VAE decoded it, without the loss of a video's coding."""
        return self.folder / f"frame-{which}.png"

    @property
    def spritesheet(self) -> Path:
        """A sheet of small pictures of the finished video, made when it is asked for."""
        return self.folder / "spritesheet.jpg"

    def preview(self, number: int) -> Path:
        """A preview that is made before the decode, numbered from 0."""
        return self.folder / f"preview-{number:02}.jpg"

    def previews(self) -> int:
        """The number of previews that exist."""
        try:
            names = os.listdir(self.folder)  # noqa: PTH208 -- a third of the time of iterdir, for each job of a list
        except FileNotFoundError:
            return 0
        return sum(name.startswith("preview-") and name.endswith(".jpg") for name in names)

    def make(self) -> "JobArtifacts":
        """Create the folder durably. Removes partial files, and what was made of an earlier decode beside its
        video: previews, and the video in other formats.

        Raises `OSError` where the data folder is gone: a job must not make it anew.
        """
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(exist_ok=True)
        for pattern in ("*.part", "preview-*.jpg", "video.*"):
            for leftover in self.folder.glob(pattern):
                if leftover != self.video:
                    leftover.unlink(missing_ok=True)
        sync(self.folder.parent)
        return self

    def remove(self) -> None:
        """Delete the folder and all of its files, durably. Raises `OSError` if something of it stays."""
        while self.folder.exists():
            with suppress(FileNotFoundError):  # another process deletes the same folder
                shutil.rmtree(self.folder)
        with suppress(FileNotFoundError):
            sync(self.folder.parent)


def job_artifacts(jobs_dir: Path, job_id: str) -> JobArtifacts:
    """The files of a job. Raises `ValueError` for an id whose path is outside the jobs folder."""
    folder = jobs_dir / job_id
    if not job_id or folder.parent != jobs_dir or job_id in {".", ".."}:
        raise ValueError(f"not a job id: {job_id!r}")
    return JobArtifacts(folder)


def part_of(path: Path) -> Path:
    """The name under which a file is written until it is complete."""
    return path.with_name(path.name + ".part")


def publish(path: Path) -> None:
    """Rename `NAME.part` to `NAME`, durably: sync the file, rename it, sync the folder."""
    part = part_of(path)
    sync(part)
    part.replace(path)
    sync(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file atomically and durably."""
    part_of(path).write_bytes(content)
    publish(path)


def sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
