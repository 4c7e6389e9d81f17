"""`framefit models`: lists the models, their sizes and what fits here; `framefit models rm` removes files."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from app.cli.options import DataDir, settings_with
from app.units import format_bytes

if TYPE_CHECKING:
    from app.config import Settings
    from app.models.entries import ModelEntry

_PLACEMENTS = {
    "resident": "all on the device",
    "drop_text_encoder": "text encoder dropped",
    "model_offload": "model offload",
    "group_offload": "group offload",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer()
    group.callback(invoke_without_command=True)(models)
    group.command("rm")(remove)
    app.add_typer(group, name="models")


def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """List the available models, the default first: format, size, whether they are on disk, what fits here.

    Asks no hub. A size with ~ is computed from the model's configuration, because the hub was not asked yet.
    """
    if context.invoked_subcommand is not None:
        return
    from app.models.entries import load_models

    settings = settings_with(data_dir=data_dir)
    rows = [_row(entry, settings) for entry in load_models(settings).values()]
    if as_json:
        typer.echo(json.dumps({"models": rows}, indent=2))
    else:
        _show(rows)


def _row(entry: "ModelEntry", settings: "Settings") -> dict[str, Any]:
    from app.models import profiles
    from app.models.checks.faults import find_fault
    from app.models.downloads.storage import storage_of
    from app.scheduling.fits_here import fits_here

    fault = find_fault(entry, settings)
    profile = profiles.load(settings, entry)
    requirements = profiles.load_requirements(settings, entry)
    return {
        "name": entry.name,
        "source": entry.source,
        "dtype": entry.dtype if entry.vae_dtype is None else f"{entry.dtype}, VAE {entry.vae_dtype}",
        "description": entry.description,
        "notice": entry.notice,
        "unavailable_because": None if fault is None else fault.reason,
        "storage": storage_of(entry, settings).as_json(),
        "fits_here": fits_here(entry, profile, requirements, _devices(), settings.reserve_bytes),
    }


def _devices() -> list[Any]:
    """The GPUs of this machine, without torch; the host if there is none."""
    from adaptive.device.host import read_host
    from adaptive.device.nvml import Nvml
    from app.scheduling.fits_here import DeviceMemory

    host = read_host()
    nvml = Nvml()
    try:
        gpus = [each for each in nvml.devices() if each.total_bytes]
    finally:
        nvml.close()
    found = [DeviceMemory(f"cuda:{each.index}", "cuda", each.total_bytes, host.total_bytes) for each in gpus]
    return found or [DeviceMemory("cpu", "cpu", host.total_bytes, host.total_bytes)]


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("model", no_wrap=True), "format", "size", "on disk", "fits here", box=None)
    for row in rows:
        storage = row["storage"]
        table.add_row(
            row["name"], storage["format"], _size(storage), "yes" if storage["on_disk"] else "no", _fit(row)
        )
    console = Console()
    console.print(table)
    for row in rows:
        if row["unavailable_because"]:
            console.print(
                f"{row['name']} cannot be used: {row['unavailable_because']}", highlight=False, soft_wrap=True
            )


def _size(storage: Mapping[str, Any]) -> str:
    if storage["size_bytes"] is None:
        return "?"
    about = "~" if storage["size_from"] == "configuration" else ""
    return f"{about}{format_bytes(storage['size_bytes'])}"


def _fit(row: Mapping[str, Any]) -> str:
    fit = row["fits_here"]
    if fit is None:
        return "not known yet"
    if not fit["fits"]:
        return f"no: {fit['detail']}"
    decode = fit["decode"].replace("_", "-")
    return f"yes: {_PLACEMENTS[fit['placement']]}, {decode}; {fit['detail']}"


def remove(
    name: Annotated[str, typer.Argument(help="A name from `framefit models`.")],
    data_dir: DataDir = None,
) -> None:
    """Remove a model's files from the hub's cache: its revision, and what a download of it left behind.

    Files that an entry names by a path are not Framefit's and stay, and so do files that another model of the
    list loads, if it is on this machine as a whole. Refuses if that leaves nothing to remove, or while a
    service on this machine has the model loaded.
    """
    from app.cli.options import chosen_model
    from app.models.downloads.cached import remove_revision, stored_snapshot
    from app.models.downloads.download import is_from_hub
    from app.models.downloads.planning import Wanted
    from app.models.downloads.transfer import repository_lock
    from app.models.entries import load_models

    settings = settings_with(data_dir=data_dir)
    entries = load_models(settings)
    entry = chosen_model(entries, name)
    if not is_from_hub(entry, settings):
        _fail(f"{name} is not from the hub: its source {entry.source} is not Framefit's to remove")
    with repository_lock(Wanted(entry.source)) as locked:
        if not locked:
            _fail(f"{entry.source} is being downloaded: stop that first")
        needed = _needed_by_others(entry, entries.values())
        keep = frozenset().union(*needed.values())
        own = stored_snapshot(entry)
        is_same = any(Wanted.by(entries[each]) == Wanted.by(entry) for each in needed)
        if is_same or (own is not None and keep >= own.files.keys()):
            _fail(f"{name} shares its files with {', '.join(needed)}: remove those entries first")
        if _is_loaded(settings, name):
            _fail(f"a worker has {name} loaded or is running a job of it: stop the service first")
        freed = remove_revision(entry.source, entry.revision, keep)
    if freed:
        rest = f"; the rest stays for {', '.join(needed)}" if keep else ""
        typer.echo(f"removed {entry.source}: {format_bytes(freed)} ({freed:,} bytes) are free{rest}")
    else:
        typer.echo(f"{entry.source} is not on this machine: nothing to remove")


def _needed_by_others(entry: "ModelEntry", others: "Iterable[ModelEntry]") -> dict[str, frozenset[str]]:
    """The files of the entry's revision that other models load, by their names.

    A model that is not whole on this machine loads none; one that wants the entry's files is listed anyway.
    """
    from app.models.downloads.cached import stored_commit, stored_snapshot
    from app.models.downloads.planning import Wanted

    needed = {}
    for each in others:
        if each.name == entry.name or each.source != entry.source or each.is_builtin:
            continue
        stored = stored_snapshot(each) if stored_commit(each) == stored_commit(entry) else None
        if stored is not None or Wanted.by(each) == Wanted.by(entry):
            needed[each.name] = frozenset(() if stored is None else stored.files)
    return needed


def _is_loaded(settings: "Settings", name: str) -> bool:
    """Whether a live worker of the data folder's service uses the model."""
    from contextlib import closing

    from app.jobs import JobStatus
    from app.store import StoreError, open_store

    if settings.database_url is None and not (settings.data_dir / "framefit.sqlite3").is_file():
        return False
    try:
        with closing(open_store(settings)) as store:
            if not store.has_schema():
                return False
            workers = store.workers(within_seconds=3 * settings.heartbeat_seconds)
            running = [store.get(each.job_id) for each in workers if each.job_id]
    except StoreError as error:
        _fail(f"cannot tell whether a worker has {name} loaded, so its files stay: {error}")
    loaded = any(each.device.get("loaded_model") == name for each in workers)
    return loaded or any(job.status is JobStatus.RUNNING and job.spec.model == name for job in running)


def _fail(message: str) -> NoReturn:
    typer.secho(f"framefit: {message}", err=True, fg=typer.colors.RED)
    sys.exit(1)
