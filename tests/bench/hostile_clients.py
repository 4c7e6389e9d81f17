"""What a well-behaved client notices of 200 hostile ones, kind by kind.

    python tests/bench/hostile_clients.py

One API process serves. A well-behaved client posts a small photo and asks for /healthz, again and again, each
from an address of its own. Beside it run hostile clients of one kind: first all from one address, then each
from an address of its own. A phase without hostile clients comes first. Answers other than 202 and 200 count
as failed.
"""

import argparse
import asyncio
import contextlib
import io
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.campaigns import commit  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "hostile_clients.md"
POSTER, PROBER, HOSTILE = "127.0.0.8", "127.0.0.9", "127.0.0.66"
POST_LIMIT_MS, HEALTH_LIMIT_MS = 1000.0, 100.0

SERVICE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from pathlib import Path
from app.api import create_app
from app.api.server import build_server
from app.config import Settings
from app.service.logs import configure
configure("info")
settings = Settings(data_dir=Path(sys.argv[2]), max_queued=1_000_000)
build_server(create_app(settings), port=int(sys.argv[1]), access_log=False).run()
"""


def form(image: bytes) -> bytes:
    """A request of POST /generate with this picture."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na boat sails by\r\n'
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n'
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        + image
        + b"\r\n--b--\r\n"
    )
    head = (
        "POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def photo() -> bytes:
    """A JPEG of some 60 KB."""
    file = io.BytesIO()
    Image.effect_noise((512, 384), 60).convert("RGB").save(file, "JPEG", quality=80)
    return file.getvalue()


def large_picture() -> bytes:
    """A PNG of 64 megapixels in few bytes."""
    file = io.BytesIO()
    Image.new("RGB", (8000, 8000), (9, 99, 200)).save(file, "PNG", compress_level=9)
    return file.getvalue()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Client:
    """Opens connections from one address."""

    port: int
    address: str

    async def connect(self, *, receive_bytes: int | None = None) -> Streams:
        """A new connection, with a receive buffer of that size."""
        connection = socket.socket()
        connection.setblocking(False)
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.bind((self.address, 0))
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        return await asyncio.open_connection(sock=connection)


def get(path: str) -> bytes:
    """A request of GET."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


async def answered(streams: Streams, request: bytes) -> int:
    """Send a request and read its answer to the end; the status."""
    reader, writer = streams
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = head.partition("content-length:")[2].split("\r\n")[0]
    if length:
        await reader.readexactly(int(length))
    return int(head.split()[1])


async def closed(streams: Streams) -> None:
    """Read nothing until the server closes; asyncio would read, so the socket is looked at."""
    writer = streams[1]
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    with contextlib.suppress(OSError):
        while not writer.is_closing():
            await asyncio.sleep(1)
            writer.write(b"\r\n")  # fails once the server has closed
            await writer.drain()


async def silent(client: Client) -> None:
    """Six connections that say nothing."""
    connections = [await client.connect() for _ in range(6)]
    await asyncio.gather(*(reader.read() for reader, _ in connections))


async def dripping(client: Client) -> None:
    """A head that never ends."""
    reader, writer = await client.connect()
    writer.write(b"GET /jobs HTTP/1.1\r\nHost: x\r\n")
    while not reader.at_eof():
        writer.write(b"X-A: b\r\n")
        await asyncio.wait_for(asyncio.shield(asyncio.sleep(0.5)), 5)
        await writer.drain()


async def reads_nothing(client: Client) -> None:
    """Many requests for a large document on one connection, none of which is read."""
    reader, writer = await client.connect(receive_bytes=4096)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(get("/openapi.json") * 40)
    await closed((reader, writer))


async def uploads_slowly(client: Client) -> None:
    """1.5 MB of a request at once, then a little each second."""
    reader, writer = await client.connect()
    writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: 30000000\r\n\r\n" + bytes(1_500_000))
    while not reader.at_eof():
        writer.write(b"x" * 1024)
        await writer.drain()
        await asyncio.sleep(1)


async def large_pictures(client: Client) -> None:
    """A picture of 64 megapixels, again and again."""
    streams = await client.connect()
    while True:
        await answered(streams, LARGE)


async def event_streams(client: Client) -> None:
    """An event stream that nobody reads."""
    reader, writer = await client.connect(receive_bytes=4096)
    writer.write(get("/events"))
    status = (await reader.readuntil(b"\r\n")).split()[1]
    if status == b"200":
        await closed((reader, writer))
    writer.close()
    await asyncio.sleep(1)


async def floods(client: Client) -> None:
    """A page of jobs, again and again."""
    streams = await client.connect()
    while True:
        await answered(streams, get("/jobs"))


async def guesses_keys(client: Client) -> None:
    """Keys for POST /session, again and again."""
    streams = await client.connect()
    body = b'{"key": "ff_%032x"}' % random.getrandbits(128)
    head = f"POST /session HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    while True:
        await answered(streams, head.encode() + body)


KINDS: dict[str, Callable[[Client], Awaitable[None]]] = {
    "silent connections": silent,
    "heads that never end": dripping,
    "readers of nothing": reads_nothing,
    "slow uploads": uploads_slowly,
    "pictures of 64 megapixels": large_pictures,
    "event streams that nobody reads": event_streams,
    "floods of cheap requests": floods,
    "guesses of keys": guesses_keys,
}
LARGE = form(large_picture())


async def hostile(kind: str, port: int, clients: int, *, one_address: bool) -> None:
    """Run the clients until this process ends; one that is cut off comes back."""

    async def again(client: Client) -> None:
        while True:
            try:
                await KINDS[kind](client)
            except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
                await asyncio.sleep(0.2)

    addresses = [HOSTILE if one_address else f"127.0.1.{1 + number}" for number in range(clients)]
    await asyncio.gather(*(again(Client(port, address)) for address in addresses))


@dataclass(slots=True)
class Seen:
    """What a well-behaved client saw: milliseconds of each answer, and answers that were none."""

    milliseconds: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """A quantile; a failed request took for ever."""
        ordered = [*sorted(self.milliseconds), *(float("inf") for _ in self.failed)]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


async def well_behaved(
    client: Client, request: bytes, wanted: int, pause: float, until: float, *, reuse: bool
) -> Seen:
    """Send the request again and again until then."""
    seen, streams = Seen(), None
    while time.monotonic() < until:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(20):
                streams = streams or await client.connect()
                status = await answered(streams, request)
        except (OSError, EOFError, TimeoutError) as error:
            seen.failed.append(type(error).__name__)
            streams = None
            continue
        milliseconds = 1000 * (time.perf_counter() - started)
        if status == wanted:
            seen.milliseconds.append(milliseconds)
        else:
            seen.failed.append(str(status))
        if not reuse:
            streams[1].close()
            streams = None
        await asyncio.sleep(pause)
    return seen


async def both(port: int, seconds: float) -> tuple[Seen, Seen]:
    """The two well-behaved clients for that time: posts and probes."""
    until = time.monotonic() + seconds
    post = well_behaved(Client(port, POSTER), form(photo()), 202, 0.05, until, reuse=True)
    probe = well_behaved(Client(port, PROBER), get("/healthz"), 200, 0.02, until, reuse=False)
    posts, probes = await asyncio.gather(post, probe)
    return posts, probes


class Service:
    """An API process with a data folder of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = folder / "log"
        command = [sys.executable, "-c", SERVICE, str(self.port), str(folder / "data")]
        with self.log.open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(command, env=environment, stderr=log)
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, "the service does not start"
                time.sleep(0.1)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)


def phase(service: Service, kind: str | None, clients: int, seconds: float, *, one_address: bool) -> Any:
    """The quantiles of one phase; the hostile clients have two seconds to begin."""
    if kind is None:
        return asyncio.run(both(service.port, seconds))
    addresses = "one" if one_address else "many"
    command = [sys.executable, __file__, "--hostile", kind, str(service.port), str(clients), addresses]
    attackers = subprocess.Popen(command)
    try:
        time.sleep(2)
        return asyncio.run(both(service.port, seconds))
    finally:
        attackers.kill()
        attackers.wait()


def table(rows: list[tuple[str, str, Seen, Seen]]) -> list[str]:
    """The Markdown of the phases."""
    lines = [
        "| hostile clients | addresses | posts | POST p50 ms | POST p99 ms | failed | "
        "probes | /healthz p50 ms | /healthz p99 ms | failed |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, addresses, posts, probes in rows:
        cells = [kind, addresses]
        for seen in (posts, probes):
            count = len(seen.milliseconds) + len(seen.failed)
            cells += [str(count), *(f"{seen.quantile(share):.0f}" for share in (0.5, 0.99))]
            cells.append(" ".join([str(len(seen.failed)), *sorted(set(seen.failed))]))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Run all phases, write the results; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind; may be repeated")
    parser.add_argument("--note", default="", help="a sentence for the results, about the machine")
    parser.add_argument("--keep", action="store_true", help="write the results file also with --kind")
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    load = os.getloadavg()[0]
    rows: list[tuple[str, str, Seen, Seen]] = []
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder))
        try:
            rows.append(("none", "", *phase(service, None, 0, options.seconds, one_address=True)))
            for kind in kinds:
                for one in (True, False):
                    found = phase(service, kind, options.clients, options.seconds, one_address=one)
                    rows.append((kind, "one" if one else str(options.clients), *found))
                    sys.stdout.write(table(rows[-1:])[-1] + "\n")
                    sys.stdout.flush()
                    time.sleep(1)
        finally:
            service.stop()
        log = service.log.read_text(errors="replace")
    missed = [
        f"{kind} ({addresses})"
        for kind, addresses, posts, probes in rows
        if posts.quantile(0.99) > POST_LIMIT_MS or probes.quantile(0.99) > HEALTH_LIMIT_MS
    ]
    text = "\n".join(
        (
            "# Hostile clients",
            "",
            f"Commit {commit()}, {os.cpu_count()} cores, {options.clients} hostile clients of each kind, "
            f"{options.seconds:.0f} s a phase, load average {load:.1f} at the start. {options.note}".strip(),
            "",
            *table(rows),
            "",
            f"Bars: POST /generate p99 {POST_LIMIT_MS:.0f} ms, GET /healthz p99 {HEALTH_LIMIT_MS:.0f} ms. "
            f"Missed: {', '.join(missed) or 'none'}.",
            f"The service's log has {len(log.splitlines()):,} lines and {log.count('Traceback')} tracebacks.",
            "",
        )
    )
    sys.stdout.write(text)
    if options.kind is None or options.keep:
        RESULTS.write_text(text, encoding="utf-8")
    if log.count("Traceback"):
        sys.stdout.write(log[log.index("Traceback") :][:3000])
    return len(missed) > 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hostile"]:
        _, _, kind_, port_, clients_, addresses_ = sys.argv
        asyncio.run(hostile(kind_, int(port_), int(clients_), one_address=addresses_ == "one"))
    else:
        sys.exit(main())
