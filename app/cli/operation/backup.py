"""`framefit backup` and `framefit restore`: all that a service keeps, in a folder and back."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import AsJson, DataDir, settings_with
from app.cli.outputs import print_json
from app.units import format_bytes

SHOWN = 5


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(backup)
    app.command()(restore)


def backup(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A new or empty folder.")],
    link: Annotated[
        bool, typer.Option(help="Hard links instead of copies of the jobs' files; needs the same disk.")
    ] = False,
    models: Annotated[bool, typer.Option(help="Also the data folder's models.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Back up database and files into a folder, also while the service runs; the copy is checked.

    With PostgreSQL the folder alone is copied: dump the database with pg_dump first.
    """
    from sqlalchemy import URL

    from app.service.backup import DUMP, make_backup

    settings = settings_with(data_dir=data_dir)
    with _refusals_in_one_line("backup"):
        url = settings.resolved_database_url
        made = make_backup(settings, path.absolute(), link=link, models=models)
    if as_json:
        print_json(_as_json(made, path))
        return
    if made.revision is None and not (path / DUMP).exists():
        # Without its password, and by the name of the protocol alone.
        shown = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
        typer.echo("The database is PostgreSQL: a backup needs its dump, too, made before the files:")
        typer.echo(f"  pg_dump --format=custom --file=NEW_FOLDER/{DUMP} '{shown}'")
        typer.echo("  framefit backup NEW_FOLDER")
    _tell_missing(made.missing)
    typer.echo(f"{_described(made.jobs)}{len(made.files)} files, {format_bytes(made.bytes)} in {path}")


def restore(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder that `framefit backup` made.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Put a backup back into an empty data folder, after checking each of its files.

    A PostgreSQL database is put back with pg_restore.
    """
    from app.service.backup import DUMP, restore_backup

    settings = settings_with(data_dir=data_dir)
    with _refusals_in_one_line("restore"):
        found = restore_backup(settings, path.absolute())
    if as_json:
        print_json(_as_json(found, settings.data_dir))
        return
    if found.revision is None:
        typer.echo(f"The backup has no database: put it back with pg_restore from {path / DUMP}.")
    _tell_missing(found.missing)
    typer.echo(f"{_described(found.jobs)}{len(found.files)} files in {settings.data_dir}")


def _as_json(backup: Any, place: Path) -> dict[str, Any]:
    return {
        "folder": str(place),
        "revision": backup.revision,
        "jobs": backup.jobs,
        "files": len(backup.files),
        "bytes": backup.bytes,
        "missing": list(backup.missing),
    }


def _described(jobs: int | None) -> str:
    return "" if jobs is None else f"{jobs} jobs, "


def _tell_missing(missing: tuple[str, ...]) -> None:
    for name in missing[:SHOWN]:
        typer.secho(f"not in the data folder, although a job names it: {name}", err=True)
    if len(missing) > SHOWN:
        typer.secho(f"and {len(missing) - SHOWN} more", err=True)


@contextmanager
def _refusals_in_one_line(command: str) -> Iterator[None]:
    from app.service.backup import BackupRefused
    from app.service.data_folder import DataFolderRefused
    from app.store import StoreError

    try:
        yield
    except (BackupRefused, DataFolderRefused, StoreError, OSError) as error:
        typer.secho(f"framefit {command}: {' '.join(str(error).split())}", err=True, fg=typer.colors.RED)
        sys.exit(1)
