"""In CI a test may skip only for a reason on the list."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("reason", "environ", "workers", "code"),
    [
        ("docker compose v2 is not installed", {"CI": "true"}, 0, 0),
        ("the moon is full", {"CI": "true"}, 0, 1),
        ("the moon is full", {"CI": "true"}, 2, 1),
        ("the moon is full", {}, 0, 0),
    ],
)
def test_a_skip_that_is_not_on_the_list_fails_a_run_in_ci(
    tmp_path: Path, reason: str, environ: dict[str, str], workers: int, code: int
) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    test = f"import pytest\n\ndef test_one():\n    pytest.skip({reason!r})\n\ndef test_two():\n    pass\n"
    (tests / "test_skipping.py").write_text(test)
    (tmp_path / ".ci").symlink_to(ROOT / ".ci")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(tmp_path),
        f"-n{workers}",
    ]
    kept = {name: value for name, value in os.environ.items() if name != "CI"} | environ
    kept["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    done = subprocess.run(
        [*command, str(tests)], cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("SKIP NOT ALLOWED" in done.stdout) == (code == 1)
