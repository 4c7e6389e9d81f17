"""What campaigns and their results share."""

import subprocess
from pathlib import Path

import av

ROOT = Path(__file__).parents[2]


def commit() -> str:
    """The commit that is measured; it ends in `-dirty` if files differ from it."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def is_whole(data_dir: Path, job_id: str, frames: int) -> bool:
    """Whether the job's video decodes to its last frame."""
    try:
        with av.open(data_dir / "jobs" / job_id / "video.mp4") as container:
            return sum(1 for _ in container.decode(video=0)) == frames
    except (OSError, av.FFmpegError):
        return False
