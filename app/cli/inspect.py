"""`framefit doctor` and `framefit models`: what is there, what is wrong, and what to do about it."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer

from app.cli.options import DataDir, settings_with, shown_bytes

LOW_DISK_BYTES = 5 * 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `advice` says what to do where it is not right."""

    subject: str
    ok: bool
    detail: str
    advice: str = ""


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(doctor)
    app.command()(models)


def doctor(data_dir: DataDir = None) -> None:
    """Look at driver, torch, disk, database and models; say what is wrong and what to do. Exit status 1 if
    anything is.
    """
    settings = settings_with(data_dir=data_dir)
    wrong = 0
    for finding in _findings(settings):
        mark, colour = ("ok   ", typer.colors.GREEN) if finding.ok else ("wrong", typer.colors.RED)
        typer.secho(mark, fg=colour, nl=False)
        typer.echo(f"  {finding.subject:10} {finding.detail}")
        if not finding.ok:
            wrong += 1
            typer.echo(f"       {'':10} {finding.advice}")
    if wrong:
        sys.exit(1)


def models(data_dir: DataDir = None) -> None:
    """List the models that the service offers, the default first."""
    from app.config import load_models

    entries = load_models(settings_with(data_dir=data_dir))
    names, sources = (max(map(len, column)) for column in (entries, [e.source for e in entries.values()]))
    for entry in entries.values():
        given = entry.defaults
        shape = (
            f"{given.num_frames} frames of {given.width}x{given.height}, {given.num_inference_steps} steps"
        )
        typer.echo(f"{entry.name:{names}} {entry.source:{sources}} {entry.dtype:9} {shape}")
        for line in (entry.description, entry.notice):
            if line:
                typer.echo(f"{'':{names}} {line}")


def _findings(settings: Any) -> Iterator[Finding]:
    yield _disk(settings)
    yield _database(settings)
    yield from _devices()
    yield _encoder()
    yield from _models(settings)


def _disk(settings: Any) -> Finding:
    folder: Path = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".doctor"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        return Finding("disk", False, str(error), "Set FRAMEFIT_DATA_DIR to a folder that can be written.")
    free = shutil.disk_usage(folder).free
    detail = f"{folder}: {shown_bytes(free)} free"
    return Finding(
        "disk", free >= LOW_DISK_BYTES, detail, "Videos and models need room: free some, or move the folder."
    )


def _database(settings: Any) -> Finding:
    from app.store import StoreError, open_store

    url = settings.resolved_database_url
    try:
        store = open_store(settings)
        try:
            store.migrate()
            counts = store.counts()
        finally:
            store.close()
    except (StoreError, OSError, ValueError) as error:
        return Finding("database", False, str(error), f"Check FRAMEFIT_DATABASE_URL and the rights on {url}.")
    return Finding("database", True, ", ".join(f"{count} {status}" for status, count in counts.items()))


def _devices() -> Iterator[Finding]:
    from adaptive.nvml import Nvml, NvmlState

    with Nvml() as nvml:
        state, gpus, driver = nvml.state, nvml.devices(), nvml.driver_version
    if state in (NvmlState.NO_DRIVER, NvmlState.NO_GPU):
        yield Finding("gpu", True, f"none ({state}): jobs run on the CPU")
    elif state is not NvmlState.OK:
        yield Finding(
            "gpu",
            False,
            f"the driver answers {state}",
            "Run nvidia-smi; a lost card needs a reset or a reboot.",
        )
    for gpu in gpus:
        memory = f"{shown_bytes(gpu.free_bytes)} of {shown_bytes(gpu.total_bytes)} free"
        detail = f"{gpu.name} {gpu.uuid}: {memory}, driver {driver}"
        advice = "The card does not answer: reset it or reboot."
        yield Finding(
            "gpu", gpu.state is NvmlState.OK, detail if gpu.state is NvmlState.OK else str(gpu.state), advice
        )
    import torch

    usable = torch.cuda.is_available()
    cuda = torch.version.cuda or "not built in"
    built = f"torch {version('torch')}, CUDA {cuda}, diffusers {version('diffusers')}"
    advice = "Install a CUDA build of torch that suits the driver; until then jobs run on the CPU."
    yield Finding("torch", usable or not gpus, built, advice)


def _encoder() -> Finding:
    import av

    if "libx264" in av.codecs_available:
        return Finding("encoder", True, f"libx264, PyAV {version('av')}")
    return Finding("encoder", False, "PyAV has no libx264", "Reinstall PyAV from its wheel.")


def _models(settings: Any) -> Iterator[Finding]:
    from app.config import load_models
    from app.loading import where_weights_are

    for entry in load_models(settings).values():
        here = where_weights_are(entry, settings)
        missing = "is not converted yet" if entry.resolution else "is not downloaded yet"
        detail = f"{entry.name}: {here}" if here else f"{entry.name}: {entry.source} {missing}"
        yield Finding("model", True, detail)
