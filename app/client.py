"""Talks to a running service over HTTP, as any client could; starts a private one where none runs.

Knows the public interface and nothing of what is behind it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.config import Settings

_POLL_SECONDS = 0.2
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


class ClientError(Exception):
    """The service refused, failed, or cannot be reached; the message is for people."""


class Client:
    """One service at `url`."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=30.0)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self, images: Mapping[str, Path], fields: Mapping[str, Any], on_wait: Callable[[str], None]
    ) -> dict[str, Any]:
        """Hand in a job with its images by field name; waits while the service is still preparing the model.
        The job as the service answers.
        """
        files = {name: (path.name, path.read_bytes()) for name, path in images.items()}
        told = False
        form = {name: str(value) for name, value in fields.items() if value is not None}
        while True:
            answer = self._http.post("/generate", data=form, files=files)
            if answer.status_code != 503 or "Retry-After" not in answer.headers:
                return self._checked(answer)
            if not told:
                on_wait(f"Waiting: {answer.json().get('detail', 'the service is getting ready')} …")
                told = True
            time.sleep(min(2.0, float(answer.headers["Retry-After"])))

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job as it changes, until it has ended."""
        while True:
            job = self._checked(self._http.get(f"/jobs/{job_id}"))
            yield job
            if job["status"] not in {"queued", "running"}:
                return
            time.sleep(_POLL_SECONDS)

    def cancel(self, job_id: str) -> None:
        """Ask for the job to be canceled."""
        self._checked(self._http.delete(f"/jobs/{job_id}"))

    def download(self, job_id: str, out: Path) -> None:
        """Save the job's video; `out` appears as a whole or not at all."""
        part = out.with_name(out.name + ".part")
        with self._http.stream("GET", f"/jobs/{job_id}/video") as answer:
            if answer.is_error:
                answer.read()
                self._checked(answer)
            with part.open("wb") as file:
                for block in answer.iter_bytes():
                    file.write(block)
        part.replace(out)

    @staticmethod
    def _checked(answer: httpx.Response) -> dict[str, Any]:
        try:
            body = answer.json() if answer.content else {}
        except ValueError:
            body = {}
        if answer.is_error:
            detail = body.get("detail") or body.get("title") or answer.reason_phrase
            raise ClientError(f"{answer.status_code} {body.get('code', '')}: {detail}".replace(" :", ":"))
        found: dict[str, Any] = body
        return found


@contextmanager
def service_url(settings: Settings, url: str | None, on_start: Callable[[], None]) -> Iterator[str]:
    """URL of the service that was named, or of one that runs here, or of a private one that ends with the
    block.
    """
    if url is not None:
        yield url
        return
    running = _running(settings)
    if running is not None:
        yield running
        return
    on_start()
    with _private_service(settings) as private:
        yield private


def _running(settings: Settings) -> str | None:
    candidates = [_announced(settings), f"http://{settings.host}:{settings.port}"]
    return next((url for url in candidates if url is not None and _is_framefit(url)), None)


def _announced(settings: Settings, pid: int | None = None) -> str | None:
    """URL in the data folder's announcement, of that process where `pid` is given."""
    try:
        found = json.loads((settings.data_dir / "service.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(found["url"]) if pid is None or found["pid"] == pid else None


def _is_framefit(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/openapi.json", timeout=2.0)
        return answer.status_code == 200 and "/generate" in answer.json().get("paths", {})
    except (httpx.HTTPError, ValueError):
        return False


@contextmanager
def _private_service(settings: Settings) -> Iterator[str]:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    log_path = settings.data_dir / "private-service.log"
    import os

    command = [sys.executable, "-m", "app", "serve", "--host", "127.0.0.1", "--port", "0"]
    command += ["--data-dir", str(settings.data_dir), "--supervisor-pid", str(os.getpid())]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield _wait_until_ready(settings, process, log_path)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(settings: Settings, process: "subprocess.Popen[bytes]", log_path: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        url = _announced(settings, process.pid)
        if url is not None:
            return url
        if process.poll() is not None:
            break
        time.sleep(0.1)
    tail = log_path.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise ClientError(f"the private service did not start:\n{tail}")
