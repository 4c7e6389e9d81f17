"""A private PostgreSQL server for the test run: in a folder of its own, reached through a socket in there."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Where Debian puts them: out of the path, a folder a version.
DEBIAN = Path("/usr/lib/postgresql")
OPTIONS = "-c fsync=off -c listen_addresses='' -c shared_buffers=16MB -c max_connections=200"


class Unavailable(Exception):
    """No server can be started here; the message says why."""


def binaries() -> Path:
    """The folder of initdb and pg_ctl."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(DEBIAN.glob("*/bin"), reverse=True)
    usable = [folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()]
    if not usable:
        raise Unavailable("PostgreSQL's server is not installed (Debian: apt install postgresql)")
    return usable[0]


@contextmanager
def running() -> Iterator[str]:
    """URL of the server's database `postgres`; the server ends with the block."""
    tools = binaries()
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="framefit-postgres-"))
    data = folder / "data"
    try:
        if os.getuid() == 0:
            shutil.chown(folder, user)

        def run(*command: str) -> None:
            done = subprocess.run(
                command, cwd=folder, user=user if os.getuid() == 0 else None, capture_output=True, text=True
            )
            if done.returncode:
                raise Unavailable(f"{command[0]} failed: {done.stderr or done.stdout}")

        run(
            str(tools / "initdb"), "-D", str(data), "-U", "framefit", "-A", "trust", "--no-sync", "-E", "UTF8"
        )
        control = (str(tools / "pg_ctl"), "-D", str(data), "-w", "-t", "300")
        run(*control, "-l", str(folder / "log"), "-o", f"{OPTIONS} -k {folder}", "start")
        try:
            yield f"postgresql+psycopg://framefit@/postgres?host={folder}"
        finally:
            run(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
