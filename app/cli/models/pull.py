"""`framefit pull`: downloads a model before its first job."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import DataDir, chosen_model, settings_with
from app.units import format_bytes

if TYPE_CHECKING:
    from app.config import Settings
    from app.models.downloads.cached import Snapshot
    from app.models.entries import ModelEntry


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(pull)


def pull(
    model: Annotated[str, typer.Argument(help="A name from `framefit models`.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Only tell what would come, and whether the hub allows it."),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Download a model's files from the Hugging Face hub, or those that have changed there since.

    Only what the pipeline loads comes. An interrupted download goes on where it stopped. For a gated
    repository, accept its licence on its page and set HF_TOKEN.
    """
    from app.models.components import ModelUnavailable
    from app.models.downloads.download import is_from_hub
    from app.models.entries import load_models

    settings = settings_with(data_dir=data_dir)
    entry = chosen_model(load_models(settings), model)
    try:
        if not is_from_hub(entry, settings):
            typer.echo(_not_needed(entry, settings))
        elif check:
            _check(entry, settings)
        else:
            found = _pulled(entry, settings)
            typer.echo(f"{entry.source}: {format_bytes(found.total_bytes)} in {found.folder}")
    except ModelUnavailable as error:
        typer.secho(f"framefit: {error}", err=True, fg=typer.colors.RED)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.secho("stopped; what was received stays, and the next pull goes on there", err=True)
        sys.exit(130)


def _not_needed(entry: "ModelEntry", settings: "Settings") -> str:
    from app.models.components import required_files

    where = "built in" if entry.is_builtin else required_files(entry, settings)
    return f"{entry.name} needs no download: {where}"


def _check(entry: "ModelEntry", settings: "Settings") -> None:
    from app.models.downloads.download import ask_size

    total_bytes, missing_bytes = ask_size(entry, settings, lambda: False)
    typer.echo(
        f"{entry.source}: {format_bytes(missing_bytes)} to download, of {format_bytes(total_bytes)} in all"
    )


def _pulled(entry: "ModelEntry", settings: "Settings") -> "Snapshot":
    from app.cli.download_bar import download_bar
    from app.models.downloads.download import download

    with download_bar(first="asking the hub") as seen:
        return download(entry, settings, seen, lambda: False)
