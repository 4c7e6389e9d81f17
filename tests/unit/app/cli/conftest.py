"""The command line in this process, in an empty folder, without the settings of whoever runs the tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import app

Framefit = Callable[..., Any]


@pytest.fixture
def framefit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Framefit]:
    """Runs the command with these arguments; settings are keywords. The folder `data` is the data folder."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.upper().startswith("FRAMEFIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **environ: str) -> Any:
        own = {"FRAMEFIT_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200", "TERMINAL_WIDTH": "200"}
        os.environ.update({**before, **own, **environ})
        try:
            return CliRunner().invoke(app, list(arguments), prog_name="framefit")
        finally:  # options become variables, for child processes
            for name in os.environ.keys() - before.keys():
                del os.environ[name]

    yield run
    os.environ.clear()
    os.environ.update(before)
