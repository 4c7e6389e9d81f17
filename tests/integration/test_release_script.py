"""docker/release.sh in a repository of its own; pip and docker only note what they are asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTE = '#!/bin/sh\necho "$(basename "$0") $*" >> "$NOTES"\n'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "framefit"
    (folder / "docker").mkdir(parents=True)
    (folder / "adaptive").mkdir()
    shutil.copy(ROOT / "docker" / "release.sh", folder / "docker")
    (folder / "adaptive" / "version.py").write_text('"""The version."""\n\n__version__ = "1.2.3"\n')
    (folder / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3\n")
    for name in ("docker", "python"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(NOTE)
        (tmp_path / "bin" / name).chmod(0o755)
    git(folder, "init", "-q")
    commit(folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Release")


def release(folder: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit status, errors, and the commands that were run."""
    notes, programs = folder.parent / "notes", folder.parent / "bin"
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        [folder / "docker" / "release.sh", *arguments],
        env={**os.environ, "PATH": path, "PYTHON": str(programs / "python"), "NOTES": str(notes)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr, notes.read_text().splitlines() if notes.exists() else []


def test_one_command_builds_wheel_and_image_with_the_version_and_the_commit(repository: Path) -> None:
    status, errors, (wheel, image) = release(repository, "--build-arg", "PYTHON_DIGEST=sha256:00")
    assert (status, errors) == (0, "")
    assert wheel == "python -m pip wheel --quiet --no-deps --wheel-dir dist ."
    revision, created = git(repository, "rev-parse", "HEAD"), git(repository, "show", "-s", "--format=%cI")
    assert image == (
        f"docker build --build-arg VERSION=1.2.3 --build-arg REVISION={revision} "
        f"--build-arg CREATED={created} --tag framefit:1.2.3 --tag framefit:latest "
        "--build-arg PYTHON_DIGEST=sha256:00 ."
    )


def test_what_is_not_committed_is_not_released(repository: Path) -> None:
    (repository / "CHANGELOG.md").write_text("## 1.2.3\nchanged\n")
    status, errors, commands = release(repository)
    assert status == 1
    assert "not committed" in errors
    assert commands == []


def test_a_version_without_its_section_of_the_changelog_is_not_released(repository: Path) -> None:
    (repository / "CHANGELOG.md").write_text("## Unreleased\n")
    commit(repository)
    status, errors, commands = release(repository)
    assert status == 1
    assert "has no section ## 1.2.3" in errors
    assert commands == []
