"""The service on one machine: its processes, and what they share.

Owns the data folder's lock, the listening socket and the list of child processes; `app.service.supervisor`
keeps the children running, `app.service.gpus.devices` chooses the workers' devices. Imports no torch.
"""

import http.client
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from app.artifacts.whole_file import replace_text
from app.config import ConfigError, Settings
from app.fields.roles import Role
from app.service.data_folder import locked_data_folder, prepare_data_folder
from app.service.ends.counts import EndCounts
from app.service.ends.deaths import OomWatch
from app.service.ends.last_run import RunRecord
from app.service.gpus import unused as unused_gpus
from app.service.gpus.allocator import allocator_environ
from app.service.gpus.devices import CPU, DeviceChoice, Devices, choose_devices
from app.service.gpus.roles import roles_of
from app.service.gpus.unused import UnusedGpu, UnusedReason
from app.service.heartbeats import HeartbeatWatch
from app.service.identity import enroll
from app.service.logs import write_level
from app.service.supervisor import ChildSpec, Supervisor
from app.store import JobStore, StoreError, open_store

log = logging.getLogger(__name__)

SERVICE_FILE = "service.json"
_HEALTH_TIMEOUT_SECONDS = 0.5


def run_service(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Run the service until SIGTERM or SIGINT; call `on_ready(url)` once, when the API answers.

    Raises `DataFolderRefused` if the data folder cannot be used or another service uses it, `StoreError` if
    the database cannot be opened, and `ConfigError` if the address cannot be bound or a device does not
    exist.
    """
    prepare_data_folder(settings.data_dir)
    with (
        locked_data_folder(settings.data_dir),
        closing(_listen(settings)) as listener,
        closing(open_store(settings)) as store,
    ):
        store.migrate(must_write=True)
        write_level(settings.data_dir, None)  # a level set at run time ends with the service
        devices = choose_devices(settings.devices)
        roles = roles_of(devices, settings.roles)
        reported = _ReportedGpus(settings.data_dir, devices)
        instance = enroll(store, settings.data_dir, heartbeat_seconds=settings.heartbeat_seconds)
        children = child_specs(devices, listener.fileno(), instance, roles)
        oom_watch, record = OomWatch(), RunRecord(settings.data_dir)
        end = record.begin(instance, oom_watch.last)
        for spec in children:
            if spec.worker_id is not None:  # no live process has this id, so its jobs can be requeued
                store.forget_worker(spec.worker_id, end.reason, end.stop)
        ends = EndCounts(settings.data_dir, [choice.identity for choice in devices.chosen])
        watch = HeartbeatWatch(
            store,
            settings.data_dir,
            heartbeat_seconds=settings.heartbeat_seconds,
            silence_seconds=settings.worker_silence_seconds,
        )

        def on_worker_death(worker_id: str, reason: str) -> None:
            ends.note(worker_id.split("/")[1], reason)
            _forget(store, worker_id, reason)

        housekeeping = _Housekeeping(settings, store, listener, on_ready, lambda: record.note(oom_watch.last))
        supervisor = Supervisor(
            children,
            drain_seconds=settings.drain_seconds,
            on_worker_death=on_worker_death,
            on_device_unavailable=reported.add,
            on_tick=housekeeping.tick,
            oom_watch=oom_watch,
            watch=watch,
        )
        try:
            supervisor.run()
            record.end()
        finally:
            (settings.data_dir / SERVICE_FILE).unlink(missing_ok=True)
            watch.withdraw()
            unused_gpus.withdraw(settings.data_dir)


def child_specs(
    devices: Devices, listener_fd: int, instance: str, roles: Mapping[str, Role] | None = None
) -> list[ChildSpec]:
    """Return the service's processes: the API, the profiler, and one worker for each device.

    `roles` are those of devices, by identity; by default a worker does both.
    """
    roles = roles or {}
    return [
        ChildSpec("api", ("api", "--listen-fd", str(listener_fd)), inherits_fd=listener_fd),
        ChildSpec("profiler", ("profile",), one_shot=True),
        *(worker_spec(choice, instance, roles.get(choice.identity, Role.BOTH)) for choice in devices.chosen),
    ]


def worker_spec(choice: DeviceChoice, instance: str, role: Role = Role.BOTH) -> ChildSpec:
    """Return the worker of a device in the service with that instance id."""
    worker_id = f"{socket.gethostname()}/{choice.identity}/{instance}"
    arguments: tuple[str, ...] = ("worker", "--device", choice.device, "--worker-id", worker_id)
    if role is not Role.BOTH:
        arguments += ("--role", role.value)
    fallback = worker_spec(CPU, instance) if choice.falls_back else None
    environ = choice.environ if choice == CPU else {**allocator_environ(), **choice.environ}
    return ChildSpec(_name(choice), arguments, environ, worker_id, drains=True, fallback=fallback)


def _name(choice: DeviceChoice) -> str:
    return f"worker-{choice.identity}"


class _ReportedGpus:
    """The GPUs without a worker: warned of at the start and when a worker gives its device up."""

    def __init__(self, data_dir: Path, devices: Devices) -> None:
        self._data_dir = data_dir
        self._by_worker = {_name(choice): choice for choice in devices.chosen}
        self._unused = devices.unused
        unused_gpus.warn(devices.unused, on_cpu=devices.chosen == (CPU,))
        unused_gpus.publish(data_dir, devices.unused)

    def add(self, worker: ChildSpec) -> None:
        """Add the GPU of a worker whose torch cannot use any GPU."""
        choice = self._by_worker[worker.name]
        detail = "torch was built without CUDA"
        gpu = UnusedGpu(choice.identity, choice.name, UnusedReason.NO_CUDA_BUILD, detail)
        self._unused = (*self._unused, gpu)
        unused_gpus.warn([gpu], on_cpu=worker.fallback is not None)
        unused_gpus.publish(self._data_dir, self._unused)


def _listen(settings: Settings) -> socket.socket:
    """Return the API's listening socket.

    The parent holds it, so a restart of the API process loses no connection, and a port in use is reported at
    once. Raises `ConfigError` if the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    listener.listen(2048)
    return listener


def _forget(store: JobStore, worker_id: str, reason: str) -> None:
    try:
        for job_id in store.forget_worker(worker_id, reason):
            log.info("job_requeued job_id=%s worker_id=%s reason=%s", job_id, worker_id, reason)
    except StoreError as error:  # the job is requeued when its lease expires
        log.warning("requeue_failed worker_id=%s reason=%s", worker_id, error)


class _Housekeeping:
    """Periodic work of the parent: requeues expired leases, keeps the record of this run, and announces once
    that the API answers.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        listener: socket.socket,
        on_ready: Callable[[str], None],
        note_oom_kills: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._address = listener.getsockname()[:2]
        self._on_ready: Callable[[str], None] | None = on_ready
        self._note_oom_kills = note_oom_kills
        self._expiry_due_at = 0.0

    def tick(self) -> None:
        self._note_oom_kills()
        now = time.monotonic()
        if now >= self._expiry_due_at:
            self._expiry_due_at = now + self._settings.lease_seconds / 4
            self._requeue_expired()
        if self._on_ready is not None and self._answers():
            self._announce(self._on_ready)
            self._on_ready = None

    def _requeue_expired(self) -> None:
        try:
            for job_id in self._store.requeue_expired():
                log.info("job_requeued job_id=%s reason=lease_expired", job_id)
        except StoreError as error:
            log.warning("requeue_failed reason=%s", error)

    def _answers(self) -> bool:
        host, port = self._address
        connection = http.client.HTTPConnection(host, port, timeout=_HEALTH_TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/healthz")
            connection.getresponse()  # whatever its status: it says what is wrong
        except (OSError, http.client.HTTPException):
            return False
        else:
            return True
        finally:
            connection.close()

    def _announce(self, on_ready: Callable[[str], None]) -> None:
        host, port = self._address
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        described = json.dumps({"url": url, "pid": os.getpid()})
        replace_text(self._settings.data_dir / SERVICE_FILE, described)
        on_ready(url)
