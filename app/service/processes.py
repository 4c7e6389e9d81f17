"""The service on one machine: its processes, and what they share.

Owns the data folder's lock, the listening socket and the list of child processes; `app.service.supervisor`
keeps the children running. Imports no torch: it finds GPUs through the driver.
"""

import fcntl
import http.client
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from adaptive.device.nvml import Nvml, NvmlState
from adaptive.device.visible_devices import cuda_visible_uuid
from app.config import ConfigError, Settings
from app.service.identity import enroll
from app.service.logs import write_level
from app.service.supervisor import ChildSpec, Supervisor
from app.store import JobStore, StoreError, open_store

log = logging.getLogger(__name__)

SERVICE_FILE = "service.json"
_HEALTH_TIMEOUT_SECONDS = 0.5


class AlreadyRunning(Exception):
    """Another service owns the data folder."""


def run_service(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Run the service until SIGTERM or SIGINT; call `on_ready(url)` once, when the API answers.

    Raises `AlreadyRunning` if another service uses the data folder, and `ConfigError` if the address cannot
    be bound, the data folder cannot be made or a device does not exist.
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"FRAMEFIT_DATA_DIR: {settings.data_dir}: {error.strerror}") from None
    with (
        _data_folder_locked(settings.data_dir),
        closing(_listen(settings)) as listener,
        closing(open_store(settings)) as store,
    ):
        store.migrate()
        write_level(settings.data_dir, None)  # a level set at run time ends with the service
        instance = enroll(store, settings.data_dir, heartbeat_seconds=settings.heartbeat_seconds)
        children = child_specs(settings, listener.fileno(), instance)
        for spec in children:
            if spec.worker_id is not None:  # no live process has this id, so its jobs can be requeued
                store.forget_worker(spec.worker_id, "service_restarted")
        housekeeping = _Housekeeping(settings, store, listener, on_ready)
        supervisor = Supervisor(
            children,
            drain_seconds=settings.drain_seconds,
            on_worker_death=lambda worker_id: _forget(store, worker_id),
            on_tick=housekeeping.tick,
        )
        try:
            supervisor.run()
        finally:
            (settings.data_dir / SERVICE_FILE).unlink(missing_ok=True)


def child_specs(settings: Settings, listener_fd: int, instance: str) -> list[ChildSpec]:
    """Return the service's processes: the API, the profiler, and one worker for each device."""
    return [
        ChildSpec("api", ("api", "--listen-fd", str(listener_fd)), inherits_fd=listener_fd),
        ChildSpec("profiler", ("profile",), one_shot=True),
        *worker_specs(settings.devices, instance),
    ]


def worker_specs(devices: str, instance: str = "") -> list[ChildSpec]:
    """Return one worker for each device; `devices` as in the settings, `instance` this service's id.

    Raises `ConfigError` for a device that the driver does not report.
    """
    cpu = _worker_spec(instance, "cpu", "cpu", {})
    if devices.strip() == "cpu":
        return [cpu]
    with Nvml() as nvml:
        gpus = nvml.devices()
        visible = [uuid for i in range(len(gpus)) if (uuid := cuda_visible_uuid(i, devices=gpus))]
        usable = [gpu.uuid for gpu in gpus if gpu.state is NvmlState.OK]
    if devices.strip() == "auto":
        # CUDA's order of different cards is unknown outside CUDA. UUIDs need no order.
        chosen = visible if "CUDA_VISIBLE_DEVICES" in os.environ else usable
        return [
            _worker_spec(instance, uuid, "cuda:0", {"CUDA_VISIBLE_DEVICES": uuid}, cpu) for uuid in chosen
        ] or [cpu]
    return [_named_device(instance, name.strip(), visible, usable) for name in devices.split(",")]


def _named_device(instance: str, name: str, visible: list[str], usable: list[str]) -> ChildSpec:
    if name == "cpu":
        return _worker_spec(instance, "cpu", "cpu", {})
    if name.startswith("cuda:") and name[5:].isdecimal() and int(name[5:]) < len(visible):
        uuid = visible[int(name[5:])]
    else:
        matches = [uuid for uuid in usable if uuid.startswith(name)]
        if len(matches) != 1:
            raise ConfigError(
                f"FRAMEFIT_DEVICES: no such device: {name}; the driver reports {', '.join(usable) or 'none'}"
            )
        uuid = matches[0]
    return _worker_spec(instance, uuid, "cuda:0", {"CUDA_VISIBLE_DEVICES": uuid})


def _worker_spec(
    instance: str,
    identity: str,
    device: str,
    environ: Mapping[str, str],
    fallback: ChildSpec | None = None,
) -> ChildSpec:
    worker_id = f"{socket.gethostname()}/{identity}/{instance}"
    arguments = ("worker", "--device", device, "--worker-id", worker_id)
    return ChildSpec(f"worker-{identity}", arguments, environ, worker_id, drains=True, fallback=fallback)


@contextmanager
def _data_folder_locked(data_dir: Path) -> Iterator[None]:
    """Lock the folder; the kernel releases the lock when this process ends, even if it is killed."""
    with (data_dir / "service.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"another service uses {data_dir.absolute()}: stop it or set FRAMEFIT_DATA_DIR"
            ) from None
        yield


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


def _forget(store: JobStore, worker_id: str) -> None:
    try:
        for job_id in store.forget_worker(worker_id):
            log.info("job_requeued job_id=%s worker_id=%s", job_id, worker_id)
    except StoreError as error:  # the job is requeued when its lease expires
        log.warning("requeue_failed worker_id=%s reason=%s", worker_id, error)


class _Housekeeping:
    """Periodic work of the parent: requeues expired leases, and announces once that the API answers."""

    def __init__(
        self, settings: Settings, store: JobStore, listener: socket.socket, on_ready: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._address = listener.getsockname()[:2]
        self._on_ready: Callable[[str], None] | None = on_ready
        self._expiry_due_at = 0.0

    def tick(self) -> None:
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
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _announce(self, on_ready: Callable[[str], None]) -> None:
        host, port = self._address
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        path = self._settings.data_dir / SERVICE_FILE
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps({"url": url, "pid": os.getpid()}), encoding="utf-8")
        draft.replace(path)
        on_ready(url)
