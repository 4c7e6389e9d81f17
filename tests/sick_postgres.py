"""Makes the private PostgreSQL server of a test ill: stopped like a machine that hangs, or started again."""

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from postgres_server import binaries
from sqlalchemy import create_engine, text


class SickPostgres:
    """The server behind a URL."""

    def __init__(self, url: str) -> None:
        engine = create_engine(url)
        with engine.connect() as connection:
            self._data = Path(str(connection.execute(text("show data_directory")).scalar()))
        engine.dispose()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Stop all of its processes with SIGSTOP until the end of the block."""
        parent = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        everyone = [parent, *parent.children(recursive=True)]
        try:
            for process in everyone:
                os.kill(process.pid, signal.SIGSTOP)
            yield
        finally:
            for process in everyone:
                if process.is_running():
                    os.kill(process.pid, signal.SIGCONT)

    @contextmanager
    def down(self) -> Iterator[None]:
        """End it like a crash, and start it again at the end of the block."""
        self._control("-m", "immediate", "stop")
        try:
            yield
        finally:
            # The options of the first start, without the program's name.
            options = (self._data / "postmaster.opts").read_text().strip().partition(" ")[2]
            data = f'"-D" "{self._data}"'
            self._control("-l", str(self._data.parent / "log"), "-o", options.replace(data, ""), "start")

    def _control(self, *arguments: str) -> None:
        user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        command = [str(binaries() / "pg_ctl"), "-D", str(self._data), "-w", *arguments]
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._data.parent,
            user=user if os.getuid() == 0 else None,
        )
