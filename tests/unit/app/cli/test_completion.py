"""Completion of the command line, as each shell installs and asks for it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Framefit = Callable[..., Any]
# The files that a shell reads, and what each must have.
INSTALLED = {
    "bash": [(".bashrc", "framefit.sh"), (".bash_completions/framefit.sh", "complete_bash")],
    "zsh": [(".zshrc", "fpath+=~/.zfunc"), (".zfunc/_framefit", "#compdef framefit")],
    "fish": [(".config/fish/completions/framefit.fish", "complete --command framefit")],
}
# Press Tab after "framefit ba" and after "framefit plan --g", as bash does.
TAB = """
source ~/.bashrc
for line in "framefit ba" "framefit plan --g"; do
    COMP_WORDS=($line); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
    $(complete -p framefit | sed 's/.*-F \\([^ ]*\\).*/\\1/') framefit
    echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.parametrize("shell", INSTALLED)
def test_completion_is_installed_where_the_shell_looks_for_it(
    shell: str, framefit: Framefit, tmp_path: Path
) -> None:
    # typer asks the process tree for the shell, which is a test's own here.
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    installed = framefit("--install-completion", shell, **named)
    assert installed.exit_code == 0, installed.output
    assert f"{shell} completion installed" in installed.stdout
    for name, part in INSTALLED[shell]:
        assert part in (tmp_path / name).read_text()
    if shell == "bash":
        assert completed_by_bash(tmp_path) == ["backup", "--gpu"]


def completed_by_bash(home: Path) -> list[str]:
    """What bash offers, after it has read its configuration in `home`."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    (home / "bin").mkdir()
    command = home / "bin" / "framefit"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m app "$@"\n')
    command.chmod(0o755)
    roots = os.pathsep.join([str(Path(__file__).parents[4]), *sys.path])
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    own = {"HOME": str(home), "PATH": path, "PYTHONPATH": roots}
    asked = subprocess.run(
        [bash, "--norc", "-c", TAB], env={**os.environ, **own}, capture_output=True, text=True, check=True
    )
    return asked.stdout.split()
