"""Blocks of code with the comment `<!-- tested -->` before them run as they stand."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from pages import README, ROOT, blocks, pages

from app.pipelines import builtin

sys.path.insert(0, str(ROOT / "tests" / "acceptance"))
from running_service import RunningService

ADDRESS = "http://127.0.0.1:8000"
# The README's script has a test of its own.
TESTED = [page for page in pages() if page != README and any(block.tested for block in blocks(page))]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose default model is `tiny`, ready for jobs."""
    running = RunningService(tmp_path_factory.mktemp("service") / "data")
    running.finished(running.submit(num_inference_steps=1, num_frames=9)["id"])
    yield running
    running.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with a photo, and `framefit` on its own path."""
    (tmp_path / "photo.jpg").write_bytes((ROOT / "app" / "assets" / "demo.jpg").read_bytes())
    command = tmp_path / "bin" / "framefit"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m app "$@"\n')
    command.chmod(0o755)
    return tmp_path


def test_each_kind_of_page_has_a_block_that_runs() -> None:
    assert {"getting-started.md", "python-library.md"} <= {page.name for page in TESTED}
    assert builtin.MODEL_FOLDER.is_dir()


@pytest.mark.parametrize("page", TESTED, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(page: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    chosen = [block for block in blocks(page) if block.tested]
    assert {block.language for block in chosen} <= {"python", "sh"}
    script = "\n".join(block.text for block in chosen if block.language == "python")
    if ADDRESS in script:
        service: RunningService = request.getfixturevalue("service")
        script = script.replace(ADDRESS, str(service.http.base_url).rstrip("/"))
    if script:
        run([sys.executable, "-c", script], folder)
    for block in chosen:
        if block.language == "sh":
            run(["sh", "-e", "-c", block.text], folder)


def test_the_cells_of_the_notebook_run_in_order(folder: Path) -> None:
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])  # figures in the file would grow old
    printed = run([sys.executable, "-c", "\n".join(cells)], folder)
    assert "per_frame: chunks of (1, 1, 1, 1, 1) latent frames" in printed


def test_the_script_of_the_readme_is_short_and_makes_a_video(folder: Path, service: RunningService) -> None:
    script = next(block.text for block in blocks(README) if block.tested)
    assert len(script.splitlines()) <= 12
    done = run(
        [sys.executable, "-c", script.replace(ADDRESS, str(service.http.base_url).rstrip("/"))], folder
    )
    # Which one is fastest was measured when the model was loaded, on a machine that other tests keep busy.
    assert re.match(r"succeeded \{'strategy': '(batched|chunked|per_frame)'.*'exact': True", done), done
    with av.open(str(folder / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 1


def test_the_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 180


def run(command: list[str], folder: Path) -> str:
    """Run a program in the folder and return what it prints; its errors are the test's."""
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "FRAMEFIT_DATA_DIR": str(folder / "data"),
    }
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
