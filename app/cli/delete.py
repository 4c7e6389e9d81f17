"""`framefit delete`: deletes jobs with their images, prompts and videos."""

import sys
from typing import Annotated

import typer

from app.cli.options import AsJson, DataDir, settings_with
from app.cli.outputs import print_json
from app.config import Settings


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(delete)


def delete(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB_ID...", help="Ids of the jobs.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Annotated[
        str | None, typer.Option(help="URL of a running service. Default: one found on this machine.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Delete jobs with their images, latents, videos, prompts and history.

    A job that has not ended is canceled first. Prints the ids of the deleted jobs. Starts a private service
    if none runs, and stops it afterwards.
    """
    if not yes:
        what = "this job" if len(job_ids) == 1 else f"these {len(job_ids)} jobs"
        typer.confirm(f"Delete {what}, with images, prompts and videos? This cannot be undone", abort=True)
    deleted, refused = _delete(job_ids, url, settings_with(data_dir=data_dir), as_json=as_json)
    if as_json:
        print_json({"deleted": deleted, "refused": refused})
    for sentence in refused:
        typer.secho(f"framefit: {sentence}", err=True, fg=typer.colors.RED)
    if refused:
        sys.exit(1)


def _delete(
    job_ids: list[str], url: str | None, settings: Settings, *, as_json: bool
) -> tuple[list[str], list[str]]:
    """Delete the jobs, and print the id of each unless `as_json`; return the ids of those that were deleted,
    and a sentence for each that was not.
    """
    from contextlib import closing

    import httpx

    from app.client import Client, ClientError, service_url

    deleted: list[str] = []
    refused: list[str] = []
    try:
        with (
            service_url(settings, url, lambda: typer.echo("Starting a private service …", err=True)) as found,
            closing(Client(found, settings.client_key)) as client,
        ):
            for job_id in job_ids:
                try:
                    client.delete(job_id)
                except ClientError as error:
                    refused.append(str(error))
                else:
                    deleted.append(job_id)
                    if not as_json:
                        typer.echo(job_id)
    except (httpx.HTTPError, ClientError) as error:
        refused.append(f"cannot reach the service: {error}")
    return deleted, refused
