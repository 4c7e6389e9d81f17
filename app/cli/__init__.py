"""The `framefit` command, with one file for each group of commands.

Each command imports the heavy packages that it needs itself, so that `--help` is fast.

generate   client: makes a video from an image and a prompt
delete     client: deletes jobs with their images, prompts and videos
bench      bench compare
models     models, pull, plan, calibrate, convert, inspect
latents    encode, decode
operation  serve, api, worker, profile, doctor, backup, restore, key
options    options and parsers that several commands share
"""

import sys
from typing import Annotated

import typer

from adaptive.device.huge_pages import enable_huge_pages
from adaptive.version import __version__
from app.cli import bench, delete, generate
from app.cli.latents import decode, encode
from app.cli.models import calibrate, convert, inspect, listed, plan, pull
from app.cli.operation import backup, doctor, keys, processes
from app.config import ConfigError
from app.models.hub import disable_telemetry
from app.service.logs import quiet_libraries

app = typer.Typer(
    name="framefit",
    help="An image-to-video server that never loses a video to VRAM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (
    processes,
    generate,
    delete,
    backup,
    plan,
    calibrate,
    encode,
    decode,
    convert,
    inspect,
    doctor,
    listed,
    pull,
    keys,
    bench,
):
    group.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"framefit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; print a configuration error as one line without a traceback."""
    enable_huge_pages()
    quiet_libraries()
    disable_telemetry()
    try:
        app()
    except ConfigError as error:
        typer.secho(f"framefit: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2)
