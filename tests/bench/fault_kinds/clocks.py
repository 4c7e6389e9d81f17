"""Kinds of faults that move or stop time: processes that are suspended, and a clock that is set."""

import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
from running_service import RunningService

SOURCE = Path(__file__).with_name("shifted_clock.c")
HOUR = 3600


class Suspensions:
    """Suspends processes of `service` with SIGSTOP, shorter and longer than a lease, and lets them go on."""

    service: RunningService
    lease_seconds: float

    def suspend_worker(self) -> None:
        """Another process may then have taken the job, or the job waits for its worker."""
        self._suspend("worker")

    def suspend_api(self) -> None:
        """Connections wait in the listening socket."""
        self._suspend("api")

    def suspend_supervisor(self) -> None:
        """Nobody restarts what dies meanwhile."""
        self._suspend("serve")

    def suspend_service(self) -> None:
        """As a laptop's sleep does: no process of the service runs."""
        self._suspend("worker", "api", "serve")

    def _suspend(self, *commands: str) -> None:
        suspended = [process for process in self._processes() if _is_one_of(process, commands)]
        random.shuffle(suspended)
        try:
            for process in suspended:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGSTOP)
            time.sleep(random.choice((0.2, 0.6, 1.3)) * self.lease_seconds + 1)
        finally:
            random.shuffle(suspended)
            for process in suspended:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGCONT)

    def _processes(self) -> list[psutil.Process]:
        try:
            return self.service.processes()
        except psutil.Error:  # it has ended
            return []


def _is_one_of(process: psutil.Process, commands: tuple[str, ...]) -> bool:
    with suppress(psutil.Error):
        return any(command in process.cmdline() for command in commands)
    return False


class ShiftedClock:
    """A clock of the day for one service, set forward and back at will; see `shifted_clock.c`."""

    def __init__(self, folder: Path) -> None:
        """Compile the library. Raises `OSError` or `CalledProcessError` without a compiler."""
        self._library = folder / "shifted_clock.so"
        self._offset = folder / "clock-offset"
        command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-O1", "-o", self._library, SOURCE, "-ldl"]
        subprocess.run(command, check=True)
        self.set(0)

    def set(self, seconds: int) -> None:
        """Set the clock wrong by so many seconds from now on."""
        with self._offset.open("r+b" if self._offset.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds))

    @property
    def environ(self) -> Mapping[str, str]:
        """Variables of the service whose clock it is."""
        return {"LD_PRELOAD": os.fspath(self._library), "CLOCK_OFFSET_FILE": os.fspath(self._offset)}
