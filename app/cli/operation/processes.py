"""The commands that run the service: `serve` is the parent process; the others are its children.

A start that fails prints one line. It exits with 2 for a setting that must be changed, and with 1 for a
database or folder that may be repaired.
"""

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from app.cli.options import DataDir, SupervisorPid, settings_with
from app.config import Settings
from app.fields.roles import Role


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(serve)
    app.command()(api)
    app.command()(worker)
    app.command(hidden=True)(profile)


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: FRAMEFIT_HOST, else 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 chooses a free one. Default: FRAMEFIT_PORT, else 8000.")
    ] = None,
    devices: Annotated[str | None, typer.Option(help='"auto", "cpu", "cuda:0,cuda:1" or GPU UUIDs.')] = None,
    data_dir: DataDir = None,
    supervisor_pid: SupervisorPid = None,
) -> None:
    """Run the service: API, profiler and one worker for each device."""
    _start_process(supervisor_pid)
    settings = settings_with(host=host, port=port, devices=devices, data_dir=data_dir)
    from app.models.entries import load_models
    from app.service.keys import load_keys
    from app.service.processes import run_service

    _configure_log(settings, "serve")
    load_models(settings)  # reports a fault in the file once, instead of in every child
    load_keys(settings)

    def ready(url: str) -> None:
        typer.echo(f"Framefit is ready at {url}", err=True)

    with _faults_in_one_line("framefit"):
        run_service(settings, ready)


def api(
    listen_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    data_dir: DataDir = None,
    supervisor_pid: SupervisorPid = None,
) -> None:
    """Run only the HTTP API; its workers are started separately."""
    _start_process(supervisor_pid)
    settings = settings_with(data_dir=data_dir)
    gc.disable()  # as for a worker: a fifth of the start
    import socket

    from app.api import create_app
    from app.api.server import build_server
    from app.models.downloads.download import ask_size
    from app.service.data_folder import prepare_data_folder

    _configure_log(settings, "api")
    with _faults_in_one_line("framefit api"):
        prepare_data_folder(settings.data_dir, may_make=supervisor_pid is None)
        app = create_app(settings, ask_hub=ask_size)
        app.state.service.store.migrate()  # here: the server would print a traceback
    server = build_server(app, host=settings.host, port=settings.port, access_log=False)
    sockets = None if listen_fd is None else [socket.socket(fileno=listen_fd)]
    gc.enable()
    gc.freeze()
    server.run(sockets)


def worker(
    device: Annotated[str, typer.Option(help="cuda:N or cpu.")] = "cpu",
    worker_id: Annotated[
        str | None, typer.Option(help="Unique name; host, device and a random number by default.")
    ] = None,
    role: Annotated[Role, typer.Option(help="What it does of each job.")] = Role.BOTH,
    data_dir: DataDir = None,
    supervisor_pid: SupervisorPid = None,
) -> None:
    """Run one worker on one device."""
    _start_process(supervisor_pid)
    settings = settings_with(data_dir=data_dir)
    gc.disable()  # garbage collection during imports frees nothing and took a fifth of a worker's start
    import secrets
    import socket
    from contextlib import closing

    from adaptive.errors import NoDevice
    from app.models.entries import load_models
    from app.service.data_folder import prepare_data_folder
    from app.service.parent_death import EXIT_DATABASE_UNAVAILABLE, EXIT_DEVICE_UNAVAILABLE
    from app.store import StoreUnavailable, open_store
    from app.worker.engine import Engine
    from app.worker.loop import Worker

    gc.enable()
    gc.freeze()
    _configure_log(settings, "worker")
    try:
        engine = Engine(settings, device, role)
    except NoDevice as error:
        typer.secho(f"framefit worker: {error}", err=True, fg=typer.colors.RED)
        # Only a torch build without CUDA gives its device up; a lost card is retried.
        sys.exit(EXIT_DEVICE_UNAVAILABLE if "without CUDA" in error.state else 1)
    with _faults_in_one_line("framefit worker"):
        prepare_data_folder(settings.data_dir, may_make=supervisor_pid is None)
        with closing(open_store(settings)) as store:
            store.migrate()
            identity = worker_id or f"{socket.gethostname()}/{device}/{secrets.token_hex(4)}"
            try:
                Worker(settings, load_models(settings), store, engine, identity).run()
            except StoreUnavailable as error:  # not the job's fault: its end could not be recorded
                typer.secho(f"framefit worker: the database: {error}", err=True, fg=typer.colors.RED)
                sys.exit(EXIT_DATABASE_UNAVAILABLE)


def profile(
    ship: Annotated[bool, typer.Option(help="Renew the profiles shipped with Framefit instead.")] = False,
    data_dir: DataDir = None,
    supervisor_pid: SupervisorPid = None,
) -> None:
    """Trace the missing memory profiles, then exit. Waits for models that cannot be traced yet."""
    _start_process(supervisor_pid)
    settings = settings_with(data_dir=data_dir)
    from app.models.checks.faults import RECHECK_SECONDS
    from app.models.entries import load_models
    from app.models.profile_tracer import keep_tracing, write_shipped

    _configure_log(settings, "profiler")
    if ship:
        write_shipped(settings, load_models(settings))
    else:
        watch = supervisor_pid is not None
        keep_tracing(settings, load_models(settings), lambda: time.sleep(RECHECK_SECONDS), watch=watch)


@contextmanager
def _faults_in_one_line(command: str) -> Iterator[None]:
    """End the process with status 1 and one line if the database or the data folder cannot be used."""
    from app.service.data_folder import DataFolderRefused
    from app.store import StoreError

    try:
        yield
    except (DataFolderRefused, StoreError) as error:
        typer.secho(f"{command}: {' '.join(str(error).split())}", err=True, fg=typer.colors.RED)
        sys.exit(1)


def _configure_log(settings: Settings, process: str) -> None:
    from app.service.logs import configure

    configure(settings.log_level, form=settings.log_format, process=process, data_dir=settings.data_dir)


def _start_process(supervisor_pid: int | None) -> None:
    from app.artifacts.modes import is_any_user_of_group_0

    if is_any_user_of_group_0():
        os.umask(0o002)
    if supervisor_pid is not None:
        from app.service.parent_death import end_with_parent

        end_with_parent(supervisor_pid)
