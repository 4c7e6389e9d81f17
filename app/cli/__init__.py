"""The `framefit` command, with one file for each group of commands.

Each command imports the heavy packages that it needs itself, so that `--help` is fast.

generate   client: makes a video from an image and a prompt
history    client: lists and searches jobs
frames     client: saves single frames of a finished video
delete     client: deletes jobs with their images, prompts and videos
bench      bench compare
models     models, pull, plan, calibrate, convert, inspect
latents    encode, decode
operation  serve, api, worker, profile, doctor, backup, restore, key
summaries  what became of a job, in sentences
options    options and parsers that several commands share
outputs    the files that commands write, looked at before the work begins, and results as JSON
faults     which errors end a command in one line
"""

from typing import Annotated

import typer

from adaptive.device.huge_pages import enable_huge_pages
from adaptive.version import __version__
from app.cli import bench, delete, frames, generate, history
from app.cli.faults import Commands
from app.cli.latents import decode, encode
from app.cli.models import calibrate, convert, inspect, listed, plan, pull
from app.cli.operation import backup, doctor, keys, processes
from app.models.hub import disable_telemetry
from app.service.logs import quiet_libraries

app = typer.Typer(
    name="framefit",
    cls=Commands,
    help="An image-to-video server that never loses a video to VRAM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for group in (
    processes,
    generate,
    history,
    frames,
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
    quiet_libraries()
    disable_telemetry()


def main() -> None:
    """Run the command line, under its own name however it was started."""
    enable_huge_pages()
    app(prog_name="framefit")
