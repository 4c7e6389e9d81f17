"""`framefit models`: lists the models."""

import typer

from app.cli.options import DataDir, settings_with


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(models)


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
