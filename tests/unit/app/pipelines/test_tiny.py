"""The built-in model's folder: whole or not there, the same everywhere, replaced when its recipe changes."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from app.pipelines import tiny

# Two processes, forked from one that has imported what they need, so that they begin in the same moment.
BUILD_TWICE = """
import os, sys
from pathlib import Path
from diffusers import LTXImageToVideoPipeline
from app.pipelines import tiny

builders = []
for _ in range(2):
    builder = os.fork()
    if builder == 0:
        tiny.build(Path(sys.argv[1]))
        sys.exit()
    builders.append(builder)
sys.exit(any([os.waitpid(builder, 0)[1] for builder in builders]))
"""


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_builders_at_once_make_one_folder_equal_to_any_other(tmp_path: Path, tiny_folder: Path) -> None:
    command = [sys.executable, "-c", BUILD_TWICE, str(tmp_path / "tiny")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    weights = {
        name: digest for name, digest in digests(tmp_path / "tiny").items() if name.endswith("tensors")
    }
    assert weights
    assert weights.items() <= digests(tiny_folder).items()


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tiny, "_pipeline", broken)
    with pytest.raises(OSError, match="no space left"):
        tiny.build(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_an_older_recipe_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "build").write_text("0")
    (folder / "stale").touch()
    tiny.build(folder)
    assert (folder / "model_index.json").exists()
    assert not (folder / "stale").exists()
    monkeypatch.setattr(tiny, "_pipeline", None)  # the right build is not made again
    assert tiny.build(folder) == folder
