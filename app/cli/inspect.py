"""`framefit doctor` and `framefit models`: check the installation, list the models."""

import json
import sys
from typing import Annotated

import typer

from app.cli.options import DataDir, settings_with


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(doctor)
    app.command()(models)


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


def models(data_dir: DataDir = None) -> None:
    """List the available models, the default first."""
    from app.models.checks.faults import find_fault
    from app.models.entries import load_models

    settings = settings_with(data_dir=data_dir)
    entries = load_models(settings)
    names, sources = (max(map(len, column)) for column in (entries, [e.source for e in entries.values()]))
    for entry in entries.values():
        given = entry.defaults
        shape = (
            f"{given.num_frames} frames of {given.width}x{given.height}, {given.num_inference_steps} steps"
        )
        dtype = entry.dtype if entry.vae_dtype is None else f"{entry.dtype}, VAE {entry.vae_dtype}"
        typer.echo(f"{entry.name:{names}} {entry.source:{sources}} {dtype:9} {shape}")
        fault = find_fault(entry, settings)
        for line in (entry.description, entry.notice, fault and f"cannot be used: {fault.reason}"):
            if line:
                typer.echo(f"{'':{names}} {line}")
