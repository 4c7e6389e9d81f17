"""`framefit convert`: a published checkpoint file to a folder that the service loads, once and for all."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

_DTYPES = ("float16", "bfloat16", "float32")


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(convert)


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="model.ckpt, or safetensors.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")],
    resolution: Annotated[int, typer.Option(help="Which DynamiCrafter it is: 256, 512 or 1024.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="A CLIP tokenizer's folder, or CLIP's merges file; beside the checkpoint otherwise."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help=f"Of the weights that are written: {', '.join(_DTYPES)}.")
    ] = "float16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is there.")] = False,
) -> None:
    """Make a diffusers folder of a published DynamiCrafter checkpoint. Nothing in the file is executed; the
    folder appears as a whole or not at all.
    """
    if dtype not in _DTYPES:
        raise typer.BadParameter(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
    try:
        made = _converted(checkpoint, out, resolution, tokenizer, dtype, overwrite)
    except (ValueError, OSError) as error:  # what the checkpoint, the vocabulary and the disk can do
        typer.secho(f"framefit: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)
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
