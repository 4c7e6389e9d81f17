"""`framefit plan`: computes weight placement and decode plan for a card, without downloading a model."""

from typing import Annotated, Any

import typer

from app.cli.options import AsJson, DataDir, byte_count, chosen_model, settings_with
from app.cli.outputs import print_json
from app.models.inspection.needs import CONTEXT_BYTES
from app.units import format_bytes, in_units


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(plan)


def plan(
    model: Annotated[
        str | None, typer.Option(help="A name from `framefit models`. Default: the default model.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="Memory of the GPU, such as 12GiB.")] = "24GiB",
    host_memory: Annotated[str, typer.Option(help="Free host memory, such as 32GiB.")] = "32GiB",
    width: Annotated[int | None, typer.Option(min=1, help="Width in pixels.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Height in pixels.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Video frames.")] = None,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Allow approximate pixels if no exact option fits, and int8 weights if the model has them.",
        ),
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Show weight placement and decode plan for a GPU.

    Computed from configurations alone, so it needs neither weights nor a GPU.
    """
    from adaptive.types import VideoShape
    from app.models.entries import load_models
    from app.service.data_folder import prepare_data_folder

    settings = settings_with(data_dir=data_dir)
    entry = chosen_model(load_models(settings), model)
    gpu_bytes, host_bytes = byte_count(gpu), byte_count(host_memory)
    prepare_data_folder(settings.data_dir)  # a traced profile is kept there
    given = entry.defaults
    video = VideoShape(frames or given.num_frames, height or given.height, width or given.width)
    from app.models.components import ModelUnavailable
    from app.models.forecast import Unfeasible, forecast

    try:
        _check_size(gpu_bytes, settings.reserve_bytes)
        found = forecast(
            settings,
            entry,
            video,
            device_bytes=gpu_bytes - CONTEXT_BYTES,
            host_bytes=host_bytes,
            exact_only=not approximate,
        )
    except Unfeasible as error:
        typer.secho(f"{entry.name} on {gpu}: {in_units(str(error))}", fg=typer.colors.RED)
        raise typer.Exit(1) from None
    except ModelUnavailable as error:
        typer.secho(f"framefit: {entry.name} cannot be planned: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from None
    if as_json:
        print_json(found)
    else:
        _show(found, f"{entry.name} on a {gpu} GPU with {host_memory} of host memory")


def _check_size(gpu_bytes: int, reserve_bytes: int) -> None:
    """Raise `Unfeasible` for a card whose memory is never free: context and reserve take all of it."""
    from app.models.forecast import Unfeasible

    reserved_bytes = CONTEXT_BYTES + reserve_bytes
    if gpu_bytes <= reserved_bytes:
        raise Unfeasible(
            f"the card is smaller than the reserve: it has {gpu_bytes:,} bytes, and {reserved_bytes:,} bytes "
            f"are reserved ({CONTEXT_BYTES:,} bytes for CUDA's context and {reserve_bytes:,} bytes of "
            "FRAMEFIT_RESERVE_BYTES)"
        )


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
