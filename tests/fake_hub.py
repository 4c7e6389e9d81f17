"""A Hugging Face hub on this machine: the routes that its client uses, for repositories made of folders.

Large files come by a redirect to another path, as the real hub sends them from its large file storage. It
can be slow, break off in mid-file, demand a licence, know nothing, or fail; it records every request.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 2**20  # files from this size on are in large file storage
BLOCK_BYTES = 2**14


@dataclass
class Repository:
    """One repository at one commit. `sizes` states another size of a file than it has."""

    files: dict[str, bytes]
    commit: str
    gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Repository":
        """The files below a folder."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return cls(files, commit_of(files))

    @property
    def total_bytes(self) -> int:
        return sum(map(len, self.files.values()))


def commit_of(files: dict[str, bytes]) -> str:
    """An id like those of git: 40 hexadecimal digits that change with the content."""
    digest = hashlib.sha1()
    for name, data in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha1(data).digest())
    return digest.hexdigest()


class FakeHub:
    """The hub's state; tests change it while the hub runs."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []  # "METHOD path", with the range that was asked for
        self.bytes_per_second: float | None = None
        self.break_after: int | None = None  # bytes of a large file's answer
        self.breaks = 0  # how many answers break off; -1: all
        self.status: int | None = None  # of every answer, for example 503
        self.failures = 0  # how many answers have that status; -1: all
        self.open_to = frozenset({"a-good-token"})
        self.ignores_ranges = False
        self.sent_bytes = 0
        self.leaked_tokens = 0  # requests to the storage that came with a token
        self.halted = threading.Event()  # while it is set, answers stand still
        self.lock = threading.Lock()
        self.url = ""

    def environ(self, home: Path) -> dict[str, str]:
        """Variables of a process that uses this hub and an empty cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def file_requests(self) -> list[str]:
        """The requests that fetched a file's content."""
        return [each for each in self.requests if each.startswith("GET") and "/api/" not in each]


def use_here(hub: FakeHub, cache: Path, monkeypatch: Any) -> None:
    """Let the hub's client in this process, which has read its variables already, use this hub."""
    from huggingface_hub import constants, hf_api

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub on a free port of 127.0.0.1 until the end of the block."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is not the place."""

    def _answer(self, *, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        with hub.lock:
            asked = self.headers.get("Range")
            hub.requests.append(f"{self.command} {path}{f' {asked}' if asked else ''}")
            fails = hub.status is not None and hub.failures != 0
            hub.failures -= fails and hub.failures > 0
        if fails:
            return self._refuse(hub.status or 500, "")
        for name, repository in hub.repositories.items():
            if path.startswith(f"/api/models/{name}/"):
                return self._api(name, repository, path.removeprefix(f"/api/models/{name}/"))
            if path == f"/api/models/{name}":
                return self._json({"id": name, "sha": repository.commit, "siblings": []})
            if path.startswith(f"/{name}/resolve/"):
                return self._resolve(repository, path.removeprefix(f"/{name}/resolve/"), body)
            if path.startswith(f"/storage/{name}/"):
                hub.leaked_tokens += "Authorization" in self.headers
                return self._content(repository.files[path.removeprefix(f"/storage/{name}/")], body)
        return self._refuse(404, "RepoNotFound")

    def _api(self, name: str, repository: Repository, path: str) -> None:
        what, _, revision = path.partition("/")
        if revision not in ("main", repository.commit):
            return self._refuse(404, "RevisionNotFound")
        siblings = [{"rfilename": each} for each in repository.files]
        if what == "revision":
            gated = "auto" if repository.gated else False
            told = {"id": name, "modelId": name, "sha": repository.commit, "gated": gated}
            return self._json({**told, "siblings": siblings, "tags": []})
        return self._json([_entry(each, repository) for each in repository.files])

    def _resolve(self, repository: Repository, path: str, body: bool) -> None:
        revision, _, name = path.partition("/")
        if revision not in ("main", repository.commit):
            return self._refuse(404, "RevisionNotFound")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository.gated and token not in self.hub.open_to:
            return self._refuse(403 if token else 401, "GatedRepo")
        if name not in repository.files:
            return self._refuse(404, "EntryNotFound")
        entry = _entry(name, repository)
        headers = {"X-Repo-Commit": repository.commit}
        if "lfs" not in entry:
            headers |= {"ETag": f'"{entry["oid"]}"'}
            return self._content(repository.files[name], body, headers)
        at = self.path.index("/resolve/")
        headers |= {
            "X-Linked-Size": str(entry["lfs"]["size"]),
            "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"',
            # Another host: the hub's client must not send it the token.
            "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/storage{self.path[:at]}/{name}",
        }
        self.send_response(302)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _content(self, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        begin = 0
        asked = self.headers.get("Range")
        if asked and not self.hub.ignores_ranges:
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
        if begin >= len(data) > 0:
            return self._refuse(416, "")
        self.send_response(206 if asked and not self.hub.ignores_ranges else 200)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if body:
            self._send(data[begin:])

    def _send(self, data: bytes) -> None:
        hub, end = self.hub, len(data)
        with hub.lock:
            if hub.break_after is not None and hub.breaks != 0 and len(data) >= LFS_BYTES // 2:
                hub.breaks -= hub.breaks > 0
                end = min(end, hub.break_after)
        try:
            for at in range(0, end, BLOCK_BYTES):
                block = data[at : min(end, at + BLOCK_BYTES)]
                while hub.halted.is_set():
                    time.sleep(0.02)
                self.wfile.write(block)
                with hub.lock:
                    hub.sent_bytes += len(block)
                if hub.bytes_per_second is not None:
                    time.sleep(len(block) / hub.bytes_per_second)
        except OSError:  # the client is gone
            self.close_connection = True
        if end < len(data):
            self.close_connection = True

    def _json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(name: str, repository: Repository) -> dict[str, object]:
    data = repository.files[name]
    size = repository.sizes.get(name, len(data))
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": name, "size": size, "oid": blob}
    if size >= LFS_BYTES:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 134}
    return entry
