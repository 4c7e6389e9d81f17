"""A local HTTP server of files by ranges, which can be wrong in each way that hosts are."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class RangedServer:
    """`file` is served at every path but `/hops/N`, which leads on N times, and `/to/URL`, which leads there.

    `manner`: "ranges", "whole" (no ranges), "endless" (whole, and it never ends), "shifted", "longer",
    "short", "packed", "nosize", "silent", "grown", or an HTTP status. `sent` counts bytes of bodies, `asked`
    the ranges.
    """

    file: Path
    manner: str = "ranges"
    url: str = ""
    sent: int = 0
    asked: list[str] = field(default_factory=list)
    finished: threading.Event = field(default_factory=threading.Event)

    def piece(self, asked: str) -> tuple[int, bytes, int]:
        """Start, bytes and size of a range of the file."""
        first, last = (int(each) for each in asked.removeprefix("bytes=").split("-"))
        size = self.file.stat().st_size
        with self.file.open("rb") as opened:
            opened.seek(first)
            return first, opened.read(min(last, size - 1) - first + 1), size


def _handler(server: RangedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

        def do_GET(self) -> None:
            first, _, rest = self.path[1:].partition("/")
            if first == "hops" and int(rest.partition("/")[0]) > 0:
                return self._lead(f"/hops/{int(rest.partition('/')[0]) - 1}/{self.path.rpartition('/')[2]}")
            if first == "to":
                return self._lead(rest)
            server.asked.append(self.headers["Range"])
            if server.manner.isdigit():
                self.send_response(int(server.manner))
                self.end_headers()
            elif server.manner in ("whole", "endless"):
                self._send_whole()
            elif server.manner == "silent":
                server.finished.wait()
            else:
                self._send_range()

        def _lead(self, where: str) -> None:
            self.send_response(302)
            self.send_header("Location", where)
            self.end_headers()

        def _send_whole(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while not server.finished.is_set():
                    self.wfile.write(bytes(4096))
                    server.sent += 4096
                    if server.manner == "whole" and server.sent >= server.file.stat().st_size:
                        return
            except OSError:  # the reader has closed the connection
                pass
            self.close_connection = True

        def _send_range(self) -> None:
            first, data, size = server.piece(self.headers["Range"])
            last = first + len(data) - 1
            self.send_response(206)
            if server.manner == "shifted":
                first += 1
            elif server.manner == "longer":
                last += 10
            elif server.manner == "grown":
                size += len(server.asked)
            length = "*" if server.manner == "nosize" else str(size)
            self.send_header("Content-Range", f"bytes {first}-{last}/{length}")
            if server.manner == "packed":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(data[:-1] if server.manner == "short" else data)
            server.sent += len(data)

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_args: Any) -> None:
        """Readers that hang up are what the tests are about."""


@contextmanager
def ranged_server(file: Path, tls: tuple[Path, Path] | None = None) -> Iterator[RangedServer]:
    """Serve the file until the end of the block, by https if `tls` has a certificate and its key."""
    server = RangedServer(file)
    listening = _Server(("127.0.0.1", 0), _handler(server))
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        listening.socket = context.wrap_socket(
            listening.socket, server_side=True, do_handshake_on_connect=False
        )
    host, port = socket.gethostbyname(str(listening.server_address[0])), listening.server_address[1]
    server.url = f"http://{host}:{port}"
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.finished.set()
        listening.shutdown()
        listening.server_close()
        thread.join()
