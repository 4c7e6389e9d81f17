"""`framefit convert`: converts a published checkpoint file to a diffusers folder that the service loads."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import AsJson
from app.cli.outputs import check_output_folder, print_json

_DTYPES = ("float16", "bfloat16", "float32")


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(convert)


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="The published checkpoint: .ckpt or .safetensors.", exists=True, dir_okay=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to create.")],
    resolution: Annotated[int, typer.Option(help="The DynamiCrafter version: 256, 512 or 1024.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a CLIP tokenizer, or CLIP's merges file. Default: beside the checkpoint."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help=f"Data type of the written weights: {', '.join(_DTYPES)}.")
    ] = "float16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a published DynamiCrafter checkpoint to a diffusers folder.

    Code in the checkpoint file is never executed. The folder is complete whenever it exists.
    """
    if dtype not in _DTYPES:
        raise typer.BadParameter(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
    check_output_folder(out)
    try:
        made = _converted(checkpoint, out, resolution, tokenizer, dtype, overwrite)
    except (ValueError, OSError) as error:  # faults of the checkpoint, the tokenizer or the disk
        typer.secho(f"framefit: {' '.join(str(error).split())}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    if as_json:
        print_json({"folder": str(made)})
    else:
        typer.echo(str(made))


def _converted(
    checkpoint: Path, out: Path, resolution: int, tokenizer: Path | None, dtype: str, overwrite: bool
) -> Path:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:32}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=1.0)

        def on_progress(share: float, what: str) -> None:
            bar.update(task, completed=share, description=what)

        import torch

        from app.pipelines import dynamicrafter

        wanted: Any = getattr(torch, dtype)
        return dynamicrafter.convert(
            checkpoint,
            out,
            resolution,
            tokenizer,
            torch_dtype=wanted,
            overwrite=overwrite,
            on_progress=on_progress,
        )
