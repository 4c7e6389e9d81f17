"""`framefit doctor`: checks the installation."""

import json
import sys
from typing import Annotated

import typer

from app.cli.options import DataDir, settings_with


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(doctor)


def doctor(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check disk, database, port, limits, driver, torch, encoder and models.

    Prints what is wrong and what to do. The exit status is 1 if a fault prevents jobs from running.
    """
    from app.doctor import CheckResult, examine

    colours = {
        CheckResult.OK: typer.colors.GREEN,
        CheckResult.NOTE: typer.colors.YELLOW,
        CheckResult.WRONG: typer.colors.RED,
    }
    found = []
    for finding in examine(settings_with(data_dir=data_dir)):
        found.append(finding)
        if as_json:
            continue
        typer.secho(f"{finding.standing:6}", fg=colours[finding.standing], nl=False)
        typer.echo(f" {finding.subject:10} {finding.detail}")
        if finding.advice:
            typer.echo(f"{'':17} {finding.advice}")
    wrong = any(finding.standing is CheckResult.WRONG for finding in found)
    if as_json:
        typer.echo(json.dumps({"ok": not wrong, "findings": [one.as_json() for one in found]}, indent=2))
    if wrong:
        sys.exit(1)
