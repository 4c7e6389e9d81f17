"""The `framefit` command. One file a group of commands; heavy imports happen inside the command that needs
them.

processes  serve, api, worker, profile: what the service consists of
generate   the client: one image in, one video out
plan       what would run where, computed without weights
encode     a clip, or a folder of clips, to latents
decode     a latents file to a video
calibrate  time and memory of each decode strategy, measured here
convert    a published checkpoint file to a folder
inspect    doctor, models
bench      bench compare
keys       key new, key hash
"""

import sys

import typer

from adaptive.device.huge_pages import enable_huge_pages
from app.cli import bench, calibrate, convert, decode, encode, generate, inspect, keys, plan, processes
from app.config import ConfigError
from app.service.logs import quiet_libraries

app = typer.Typer(
    name="framefit",
    help="An image-to-video server that never loses a video to VRAM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (processes, generate, plan, calibrate, encode, decode, convert, inspect, keys, bench):
    group.register(app)


def main() -> None:
    """Run the command line; a bad configuration is one line, not a traceback."""
    enable_huge_pages()
    quiet_libraries()
    try:
        app()
    except ConfigError as error:
        typer.secho(f"framefit: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2)
