"""`framefit jobs`: lists jobs, the newest first, with the filters of GET /jobs."""

import sys
from datetime import datetime
from typing import Annotated, Any

import typer

from app.cli.options import AsJson, DataDir, settings_with
from app.cli.outputs import print_json
from app.config import Settings

STATUSES = ("queued", "running", "succeeded", "failed", "canceled", "ended")
_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
_PROMPT_COLUMNS = 60


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(jobs)


def jobs(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="Only jobs with these words in prompt, model or id."),
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(help="queued, running, succeeded, failed, canceled, or ended for the last three."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=_TIMES, help="Only jobs created since then, in local time.")
    ] = None,
    before: Annotated[
        datetime | None, typer.Option(formats=_TIMES, help="Only jobs created before then, in local time.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many jobs.")] = 20,
    url: Annotated[
        str | None, typer.Option(help="URL of a running service. Default: one found on this machine.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List jobs, the newest first.

    Starts a private service if none runs, and stops it afterwards.
    """
    if status is not None and status not in STATUSES:
        raise typer.BadParameter(f"{status!r}: write one of {', '.join(STATUSES)}", param_hint="--status")
    filters = {
        "q": " ".join(words or []) or None,
        "status": status,
        "model": model,
        "since": None if since is None else since.astimezone().isoformat(),
        "before": None if before is None else before.astimezone().isoformat(),
    }
    found = _jobs(filters, limit, url, settings_with(data_dir=data_dir))
    if as_json:
        print_json({"jobs": found})
        return
    for job in found:
        typer.echo(_line(job))
    if not found:
        typer.echo("There is no such job.", err=True)


def _jobs(filters: dict[str, Any], limit: int, url: str | None, settings: Settings) -> list[dict[str, Any]]:
    from contextlib import closing

    import httpx

    from app.client import Client, ClientError, service_url

    try:
        with (
            service_url(settings, url, lambda: typer.echo("Starting a private service …", err=True)) as found,
            closing(Client(found, settings.client_key)) as client,
        ):
            return client.jobs(limit, **filters)
    except (httpx.HTTPError, ClientError) as error:
        reason = str(error) if isinstance(error, ClientError) else f"cannot reach the service: {error}"
        typer.secho(f"framefit: {reason}", err=True, fg=typer.colors.RED)
        sys.exit(1)


def _line(job: dict[str, Any]) -> str:
    """Return the job in one line: id, when it was created in local time, status, model and prompt."""
    created = datetime.fromisoformat(job["created_at"]).astimezone()
    prompt = " ".join(job["request"]["prompt"].split())
    if len(prompt) > _PROMPT_COLUMNS:
        prompt = prompt[: _PROMPT_COLUMNS - 1] + "…"
    printable = "".join(each if each.isprintable() else "?" for each in prompt)
    return (
        f"{job['id']}  {created:%Y-%m-%d %H:%M}  {job['status']:9}  {job['model']:16}  {printable}".rstrip()
    )
