"""`framefit plan`: computes weight placement and decode plan for a card, without downloading a model."""

import json
from typing import Annotated, Any

import typer

from app.cli.options import DataDir, byte_count, settings_with
from app.models.inspection.needs import CONTEXT_BYTES
from app.units import format_bytes


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(plan)


def plan(
    model: Annotated[
        str | None, typer.Option(help="A name from `framefit models`. Default: the default model.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="Memory of the GPU, such as 12GB.")] = "24GB",
    host_memory: Annotated[str, typer.Option(help="Free host memory, such as 32GB.")] = "32GB",
    width: Annotated[int | None, typer.Option(help="Width in pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Video frames.")] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Allow approximate pixels if no exact option fits, and int8 weights if the model has them.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show weight placement and decode plan for a GPU.

    Computed from configurations alone, so it needs neither weights nor a GPU.
    """
    from adaptive.types import VideoShape
    from app.config import ConfigError
    from app.models.entries import load_models

    settings = settings_with(data_dir=data_dir)
    models = load_models(settings)
    entry = models.get(model or next(iter(models)))
    if entry is None:
        raise ConfigError(f"there is no model {model!r}; available models: {', '.join(models)}")
    given = entry.defaults
    video = VideoShape(frames or given.num_frames, height or given.height, width or given.width)
    from app.models.components import ModelUnavailable
    from app.models.forecast import Unfeasible, forecast

    try:
        found = forecast(
            settings,
            entry,
            video,
            device_bytes=byte_count(gpu) - CONTEXT_BYTES,
            host_bytes=byte_count(host_memory),
            exact_only=not approximate,
        )
    except Unfeasible as error:
        typer.secho(f"{entry.name} on {gpu}: {error}", fg=typer.colors.RED)
        raise typer.Exit(1) from None
    except ModelUnavailable as error:
        typer.secho(f"{entry.name} cannot be planned: {error}", fg=typer.colors.RED)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _show(found, f"{entry.name} on a {gpu} GPU with {host_memory} of host memory")


def _show(found: dict[str, Any], title: str) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    video, placement, decode = found["video"], found["placement"], found["decode"]
    console.print(f"[bold]{title}[/bold], {video['frames']} frames of {video['width']}x{video['height']}")
    console.print(f"weights  {placement['reason']}")
    console.print(f"         {format_bytes(placement['host_bytes'])} of host memory", highlight=False)
    own_files = any(part["from_file"] for part in found["components"])
    for part in found["components"] if own_files else ():
        working = f", {format_bytes(part['working_bytes'])} to dequantize" if part["working_bytes"] else ""
        console.print(
            f"         {part['name']}: {format_bytes(part['weight_bytes'])} ({part['format']}{working})",
            highlight=False,
        )
    console.print(f"decode   {decode['detail']} ({'exact' if decode['exact'] else 'approximate'})")
    table = Table(Column("rung", no_wrap=True), "latent frames", "pixels", "needs at most", "fits")
    for rung in found["rungs"]:
        fits = "yes" if rung["fits"] else "no"
        name = rung["strategy"] + (f" x {rung['strips']}" if rung["strips"] > 1 else "")
        pixels = "exact" if rung["exact"] else "approximate"
        table.add_row(name, str(rung["frames_per_chunk"]), pixels, format_bytes(rung["upper_bytes"]), fits)
    console.print(table)
