"""`framefit frames`: saves single frames of a finished video as PNG files."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import AsJson, DataDir, settings_with
from app.cli.outputs import check_output_file, print_json


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(context_settings={"ignore_unknown_options": True})(frames)


def frames(
    job_id: Annotated[str, typer.Argument(help="Id of the job.")],
    which: Annotated[
        list[str],
        typer.Argument(
            metavar="FRAME...", help="Numbers from 0, negative ones from the end; or first and last."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The PNG file to write; of several frames, {} is the number.")
    ] = Path("frame-{}.png"),
    exact: Annotated[
        bool,
        typer.Option("--exact", help="The pixels that the VAE decodes: decodes the job's latents again."),
    ] = False,
    url: Annotated[
        str | None, typer.Option(help="URL of a running service. Default: one found on this machine.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Save single frames of a finished video as PNG files, and print their names.

    Frames are read from the mp4, with the loss of its coding, unless --exact is given; first and last are
    always exact.
    """
    files = _files(out, which)
    for path in files.values():
        check_output_file(path)
    pixels = _save(job_id, files, exact, url, settings_with(data_dir=data_dir))
    if as_json:
        rows = [{"frame": name, "file": str(path), "pixels": pixels[name]} for name, path in files.items()]
        print_json({"job_id": job_id, "frames": rows})
        return
    for path in files.values():
        typer.echo(str(path))


def _files(out: Path, which: list[str]) -> dict[str, Path]:
    """Return the file of each frame. Raises `typer.BadParameter` if two would be written to one."""
    for name in which:
        if not re.fullmatch(r"first|last|-?[0-9]{1,6}", name):
            message = f"{name!r} is no frame: give a number, first or last"
            raise typer.BadParameter(message, param_hint="FRAME")
    if len(set(which)) > 1 and "{}" not in out.name:
        message = "several frames need several files: put {} where the number goes, as in frame-{}.png"
        raise typer.BadParameter(message, param_hint="--out")
    return {name: out.with_name(out.name.replace("{}", name)) for name in which}


def _save(job_id: str, files: dict[str, Path], exact: bool, url: str | None, settings: Any) -> dict[str, str]:
    """Write the files; return what the pixels of each frame are: `decoded` or `lossy`."""
    from contextlib import closing
    from functools import partial

    import httpx

    from app.client import Client, ClientError, service_url

    def say(sentence: str) -> None:
        typer.echo(sentence, err=True)

    try:
        with (
            service_url(settings, url, lambda: say("Starting a private service …")) as found,
            closing(Client(found, settings.client_key)) as client,
        ):
            on_wait = partial(say, "The job's latents are decoded again …")
            return client.save_frames(job_id, files, exact=exact, on_wait=on_wait)
    except httpx.HTTPError as error:
        raise ClientError(f"cannot reach the service: {error}") from error
