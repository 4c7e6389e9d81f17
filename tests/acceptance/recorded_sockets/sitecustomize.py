"""Runs at the start of each Python process whose PYTHONPATH has this folder: writes down whom it contacts.

With RECORDED_SOCKETS set, each address that a socket connects to, and each name that is looked up, is a line
of that file. An audit hook sees them whatever library makes them.
"""

import os
import sys
from typing import Any


def record_into(path: str) -> None:
    """Append to the file `path` from now on."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            os.write(file, f"connect {arguments[1][0]} {arguments[1][1]}\n".encode())
        elif event == "socket.getaddrinfo":
            os.write(file, f"name {arguments[0]} {arguments[1]}\n".encode())

    sys.addaudithook(hook)


if os.environ.get("RECORDED_SOCKETS"):
    record_into(os.environ["RECORDED_SOCKETS"])
