"""The rules of the layout: imports point one way, rooms stay small, long files say why."""

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "adaptive")
FILES_OF_A_ROOM = 14
LINES_OF_A_FILE = 300


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def test_at_most_sixteen_files_lie_beside_the_rooms() -> None:
    loose = [path for package in PACKAGES for path in (ROOT / package).glob("*.py")]
    assert len(loose) <= 16, sorted(loose)


def test_no_room_has_more_than_fourteen_files_side_by_side() -> None:
    counts: dict[Path, int] = {}
    for path in sources():
        # The database's revisions are a list: it only grows, and nobody looks for a file by its purpose.
        if path.name != "__init__.py" and path.parent.name != "versions":
            counts[path.parent] = counts.get(path.parent, 0) + 1
    assert {room: count for room, count in counts.items() if count > FILES_OF_A_ROOM} == {}


def test_every_room_says_what_it_is_for() -> None:
    silent = [
        path
        for path in sources()
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_a_file_of_more_than_300_lines_says_why_in_its_docstring() -> None:
    unexplained = [
        path
        for path in sources()
        if len(path.read_text().splitlines()) > LINES_OF_A_FILE
        and "Longer than 300 lines" not in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert unexplained == []


def test_no_file_imports_itself_through_others() -> None:
    """Imports for type checking count, and so do those inside functions."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=False)
    left = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while ends := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in ends:
            del left[module]
    assert left == {}, "these files are on an import circle or lead to one"


def test_the_contracts_take_fewer_than_sixty_lines() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    section = text[text.index("[tool.importlinter]") :].splitlines()
    assert tomllib.loads("\n".join(section))["tool"]["importlinter"]["contracts"]
    assert len(section) < 60


@pytest.mark.parametrize(
    ("file", "planted", "breaks"),
    [
        ("app/cli/models/plan.py", "from app.media import images", False),
        ("app/store/rows.py", "from app.api import views", True),
        ("adaptive/memory/speed.py", "from adaptive.planning import planner", True),
        ("app/scheduling/eta.py", "import torch", True),
        ("adaptive/types.py", "import app.jobs", True),
        ("app/media/pictures/image_structure.py", "from app.media import images", True),
    ],
)
def test_an_import_that_points_upwards_breaks_a_contract(
    tmp_path: Path, file: str, planted: str, breaks: bool
) -> None:
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "static")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    target = tmp_path / file
    target.write_text(target.read_text() + f"\n\ndef _planted() -> None:\n    {planted}\n")
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as c; c()",
        "--no-cache",
    ]
    environ = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=500)
    assert done.returncode == breaks, done.stdout + done.stderr
    assert ("BROKEN" in done.stdout) == breaks
