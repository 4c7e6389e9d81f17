"""The files of a job: latents, video and pictures, in one local folder a job.

All files are written atomically. Writers write `NAME.part` in the same folder, sync it and rename it, so a
reader never sees a partial file. Must not know what is inside the files.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# A decode writes all of them again: a second for 64 frames of 720p.
MOST_ASKED_FRAMES = 64


class TooManyFramesAsked(Exception):
    """As many frames as a decode may write have been asked for, and none of them is written yet."""


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

    def forget_converted(self) -> None:
        """Delete the video in other formats: it has been replaced by that of another decode."""
        for path in self.folder.glob("video.*"):
            if path != self.video and path.suffix != ".part":
                path.unlink(missing_ok=True)

    @property
    def thumbnail(self) -> Path:
        """A picture of the finished video."""
        return self.folder / "thumbnail.jpg"

    def frame(self, which: str) -> Path:
        """The video's "first" or "last" frame as the VAE decoded it, without the loss of a video's coding."""
        return self.folder / f"frame-{which}.png"

    def exact_frame(self, number: int) -> Path:
        """A frame by its number from 0, as `frame`; written by a decode if `asked_frames` has it."""
        return self.folder / f"frame-{number:06}.png"

    def ask_frame(self, number: int) -> bool:
        """Note durably that the next decodes shall write this frame; returns False if it was noted before.

        Of more than `MOST_ASKED_FRAMES`, the frame that was noted first and is written is no longer noted;
        its file stays until the next decode. Raises `TooManyFramesAsked` if none of them is written: whoever
        waits for a frame gets it.
        """
        note = self._note_of(number)
        if note.exists():
            return False
        notes = sorted(self.folder.glob("frame-*.asked"), key=lambda path: path.stat().st_mtime_ns)
        excess = max(0, len(notes) - MOST_ASKED_FRAMES + 1)
        written = [path for path in notes if self.exact_frame(_number_of(path)).exists()]
        if len(written) < excess:
            raise TooManyFramesAsked
        for oldest in written[:excess]:
            oldest.unlink(missing_ok=True)
        note.touch()
        sync(self.folder)
        return True

    def forget_frame(self, number: int) -> None:
        """Take back `ask_frame`."""
        self._note_of(number).unlink(missing_ok=True)
        self.exact_frame(number).unlink(missing_ok=True)

    def asked_frames(self) -> frozenset[int]:
        """The frames that a decode shall write."""
        return frozenset(map(_number_of, self.folder.glob("frame-*.asked")))

    def _note_of(self, number: int) -> Path:
        return self.folder / f"frame-{number:06}.asked"

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
        video: previews, single frames, and the video in other formats.

        Raises `OSError` where the data folder is gone: a job must not make it anew.
        """
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(exist_ok=True)
        for pattern in ("*.part", "preview-*.jpg", "frame-[0-9]*.png", "video.*"):
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


def _number_of(path: Path) -> int:
    return int(path.stem.removeprefix("frame-"))


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
