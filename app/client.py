"""An HTTP client of the service; starts a private service if none runs.

Uses the public HTTP interface only.
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
from app.service.data_folder import prepare_data_folder

_POLL_SECONDS = 0.2
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_CONVERSION_SECONDS = 700.0  # more than the service spends on one file
_BUSY_RETRIES = 60


class ClientError(Exception):
    """The service refused the request, failed, or cannot be reached; the message is for people."""


class Client:
    """A client of the service at `url`."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=30.0)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self, images: Mapping[str, Path], fields: Mapping[str, Any], on_wait: Callable[[str], None]
    ) -> dict[str, Any]:
        """Submit a job with its images by field name; return its JSON. Raises `ClientError`.

        Retries while the service answers 503 with Retry-After; calls `on_wait(message)` when the reason is
        another one than before.
        """
        files = {name: (path.name, path.read_bytes()) for name, path in images.items()}
        told = ""
        form = {name: str(value) for name, value in fields.items() if value is not None}
        body: dict[str, Any] = {"data": form, "files": files} if files else {"json": form}
        while True:
            answer = self._http.post("/generate", **body)
            if answer.status_code != 503 or "Retry-After" not in answer.headers:
                return self._checked(answer)
            reason = str(answer.json().get("detail", "the service is starting"))
            if reason != told:
                on_wait(f"Waiting: {reason} …")
                told = reason
            time.sleep(min(2.0, float(answer.headers["Retry-After"])))

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Yield the job's JSON at each poll until it has ended."""
        while True:
            job = self._checked(self._http.get(f"/jobs/{job_id}"))
            yield job
            if job["status"] not in {"queued", "running"}:
                return
            time.sleep(_POLL_SECONDS)

    def jobs(self, limit: int, **filters: str | None) -> list[dict[str, Any]]:
        """Return up to `limit` jobs, the newest first; `filters` are the query parameters of GET /jobs."""
        found: list[dict[str, Any]] = []
        query = {name: value for name, value in filters.items() if value is not None}
        while len(found) < limit:
            parameters = {**query, "limit": str(min(200, limit - len(found)))}
            page = self._checked(self._http.get("/jobs", params=parameters))
            found += page["jobs"]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        return found

    def cancel(self, job_id: str) -> None:
        """Request the job's cancellation."""
        self._checked(self._http.delete(f"/jobs/{job_id}"))

    def finish_early(self, job_id: str) -> None:
        """Ask for the video as far as it is denoised: the next step is the last one."""
        self._checked(self._http.post(f"/jobs/{job_id}/finish-early"))

    def delete(self, job_id: str) -> None:
        """Delete the job, with its images, prompt and video; a job that has not ended is canceled."""
        self._checked(self._http.post(f"/jobs/{job_id}/delete"))

    def download(self, job_id: str, out: Path, form: str = "mp4") -> None:
        """Save the job's video as `out`, which is complete whenever it exists.

        `form` is mp4 or another format, which the service may have to make first; retries while it is busy.
        """
        address = f"/jobs/{job_id}/video" + ("" if form == "mp4" else f"?format={form}")
        for _ in range(_BUSY_RETRIES):
            with self._http.stream("GET", address, timeout=_CONVERSION_SECONDS) as answer:
                if answer.status_code != 503 or "Retry-After" not in answer.headers:
                    self._save(answer, out)
                    return
            time.sleep(float(answer.headers["Retry-After"]))
        raise ClientError(f"the service is too busy to make a {form}: try later")

    def save_frames(
        self, job_id: str, files: Mapping[str, Path], *, exact: bool, on_wait: Callable[[], None]
    ) -> dict[str, str]:
        """Save frames of the job's video, each in its file; return what their pixels are: `decoded`, `lossy`.

        `exact` may make the service decode the job's latents again, once for as many as it takes at a time;
        then `on_wait` is called.
        """
        pixels: dict[str, str] = {}
        while True:
            for which in [each for each in files if each not in pixels]:
                # The two ends are exact anyway.
                query = "?exact=1" if exact and which not in ("first", "last") else ""
                with self._http.stream("GET", f"/jobs/{job_id}/frames/{which}.png{query}") as answer:
                    if answer.status_code == 202:
                        continue
                    if _is_full(answer):
                        break
                    self._save(answer, files[which])
                    pixels[which] = answer.headers.get("Framefit-Pixels", "")
            if len(pixels) == len(files):
                return pixels
            on_wait()
            on_wait = lambda: None  # noqa: E731
            time.sleep(_POLL_SECONDS)

    def _save(self, answer: httpx.Response, out: Path) -> None:
        if answer.is_error:
            answer.read()
            self._checked(answer)
        part = out.with_name(out.name + ".part")
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


def _is_full(answer: httpx.Response) -> bool:
    """Whether the service takes no more frames until the job's decode has ended."""
    if answer.status_code != 409:
        return False
    answer.read()
    return bool(answer.json().get("code") == "too_many_frames")


@contextmanager
def service_url(settings: Settings, url: str | None, on_start: Callable[[], None]) -> Iterator[str]:
    """Yield `url` if given, else the URL of a service on this machine, else that of a private service.

    The private service stops at the end of the block; `on_start` is called before it starts.
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
    """Return the URL in the data folder's service.json; with `pid`, only if that process wrote it."""
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
    prepare_data_folder(settings.data_dir)
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
    raise ClientError(f"the private service did not start; the end of {log_path}:\n{tail}")
