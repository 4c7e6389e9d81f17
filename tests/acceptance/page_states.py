"""The page in every state that a person can meet, in two sizes and both themes: pictures, and what is wrong.

The states are those of a real API process whose job table is driven to them, as a worker would. Run as a
script it makes every picture:

    python tests/acceptance/page_states.py --out build/page-states

With `--docs` it renews the pictures that `docs/page.md` shows.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

from browser import chromium  # noqa: E402
from page_checks import Look, faults_of  # noqa: E402
from waiting import wait_for  # noqa: E402

from app.artifacts.local_folder import job_artifacts  # noqa: E402
from app.config import HASH_PREFIX, Settings  # noqa: E402
from app.jobs import JobError, JobStatus, Stage  # noqa: E402
from app.pipelines.photo_pan.camera import boxes  # noqa: E402
from app.pipelines.photo_pan.prompt import motion_of  # noqa: E402
from app.pipelines.photo_pan.resampling import frames  # noqa: E402
from app.store import JobStore, open_store  # noqa: E402

PHOTO = ROOT / "app" / "assets" / "demo.jpg"
IN_DOCS = ROOT / "docs" / "pictures" / "states"
KEY = "ff_a-key-of-the-studio"
WORKER, GIB = "cpu-worker", 2**30
MEMORY = {"total_bytes": 8 * GIB, "free_bytes": 6 * GIB, "own_bytes": GIB}
DEVICE = {"name": "cpu", "kind": "cpu", "capacity_bytes": 7 * GIB, "loaded_model": "photo-pan", **MEMORY}
PROMPT = "The camera pans slowly to the right"
DECODE = {
    "strategy": "chunked", "frames_per_chunk": 8, "exact": True, "reason": "fastest_that_fits", "retries": 0,
    "predicted_peak_bytes": 412 * 2**20, "measured_peak_bytes": 388 * 2**20, "budget_bytes": 5 * GIB,
    "free_bytes_at_decision": 6 * GIB, "device": "cpu", "predicted_seconds": 3.1, "seconds": 2.8,
    "vae": "AutoencoderKLLTXVideo",
}  # fmt: skip
# An entry whose VAE no shipped profile describes: its first plans wait for a measurement.
MODELS = '[models.new-model]\nbase = "ltx-video"\nrevision = "v2"\n'


@dataclass(frozen=True)
class Window:
    """The size of the browser's window and its theme."""

    width: int
    height: int
    theme: str

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.width}x{self.height}-{self.theme}"


WINDOWS = [Window(*size, theme) for size in ((1280, 900), (390, 844)) for theme in ("light", "dark")]


class Service:
    """A real API process on a folder, and its job table."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.settings = Settings(data_dir=folder, heartbeat_seconds=600)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        own = ["--supervisor-pid", str(os.getpid()), "--listen-fd", str(listener.fileno())]
        variables = {**os.environ, "FRAMEFIT_DATA_DIR": str(folder), "FRAMEFIT_HEARTBEAT_SECONDS": "600"}
        with listener, (folder / "api.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "api", *own],
                env=variables | environ,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                pass_fds=[listener.fileno()],
            )
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self._store: JobStore | None = None

    @property
    def store(self) -> JobStore:
        """The job table, once the process has made it."""
        if self._store is None:
            wait_for(self._answers, 120, self._log)
            self._store = open_store(self.settings)
        return self._store

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._log()
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    def _log(self) -> str:
        return (self.folder / "api.log").read_text(errors="replace")

    def begin(self, *, with_worker: bool) -> None:
        """Delete what earlier states left, and let a worker report or none."""
        self.clear()
        self.store.pause_worker(WORKER, paused=False)
        if with_worker:
            self.store.register_worker(WORKER, DEVICE)
        else:
            self.store.forget_worker(WORKER)

    def submit(self, prompt: str = PROMPT) -> str:
        """Hand in a job."""
        answer = self.http.post(
            "/generate", data={"prompt": prompt, "seed": "7"}, files={"image": PHOTO.read_bytes()}
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def claimed(self) -> tuple[str, int]:
        """A job that the worker has taken, with its token."""
        self.submit()
        claim = self.store.claim(WORKER, models=["photo-pan"], loaded_model=None, lease_seconds=3600)
        assert claim is not None
        return claim.job.id, claim.token

    def at(self, stage: Stage, progress: float, **data: Any) -> None:
        """A running job in that stage."""
        job_id, token = self.claimed()
        for each in (Stage.LOADING, stage):
            self.store.progress(job_id, token, stage=each, progress=progress / 2, kind="stage")
        kind = "waiting_for_memory" if stage is Stage.WAITING_FOR_MEMORY else "progress"
        self.store.progress(job_id, token, stage=stage, progress=progress, kind=kind, data=data)

    def made(self, store: JobStore | None = None) -> str:
        """A job with its video, that `store` finishes."""
        job_id, token = self.claimed()
        files = job_artifacts(self.settings.jobs_dir, job_id).make()
        write_video(files.video, files.thumbnail)
        self.store.checkpoint(
            job_id, token, f"jobs/{job_id}/latents.safetensors", {"steps": 2, "seconds": 1.2}
        )
        result = {
            "frames": 33, "width": 512, "height": 320, "fps": 16, "seed": 7, "audio": None, "thumbnail": True,
            "bytes": files.video.stat().st_size, "video_path": f"jobs/{job_id}/video.mp4",
        }  # fmt: skip
        (store or self.store).finish(
            job_id,
            token,
            status=JobStatus.SUCCEEDED,
            decode=DECODE,
            result=result,
            durations={"denoising": 1.2, "decoding": 2.8},
        )
        return job_id

    def clear(self) -> None:
        """Delete every job, whatever it does."""
        for job in self.http.get("/jobs", params={"limit": 100}).json()["jobs"]:
            self.http.delete(f"/jobs/{job['id']}")
            found = self.store.get(job["id"])
            if found.status is JobStatus.RUNNING:
                self.store.finish(job["id"], found.token, status=JobStatus.CANCELED)
            self.http.post(f"/jobs/{job['id']}/delete").raise_for_status()

    def close(self) -> None:
        """Stop the process."""
        if self._store is not None:
            self._store.close()
        self.http.close()
        self.process.terminate()
        self.process.wait(60)


def write_video(video: Path, thumbnail: Path) -> None:
    """The demonstration's clip of the bundled photo, without a model: 33 frames, 512x320."""
    photo = Image.open(PHOTO).convert("RGB")
    pictures = [*frames(photo, boxes(photo.size, (512, 320), motion_of(PROMPT), 33), (512, 320))]
    with av.open(str(video), "w") as file:
        stream = file.add_stream("h264", rate=16, width=512, height=320, pix_fmt="yuv420p")
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), "rgb24")))
        file.mux(stream.encode())
    pictures[0].save(thumbnail, "JPEG", quality=90)


@dataclass(frozen=True)
class State:
    """One state: how the service gets there, what a person does on the page, what the page then says where.

    `says`: a selector of what must be in view, with its text. `refusal`: it must be read out, too.
    """

    name: str
    says: str
    drive: Callable[[Service], object] = lambda _service: None
    act: Callable[[Any], object] = lambda _page: None
    refusal: bool = False
    keyed: bool = False
    loaded: str = ".rung.chosen"


def _open_settings_and_send(page: Any) -> None:
    page.click("form summary >> nth=0")
    page.click("#submit")


def _choose_a_text(page: Any) -> None:
    page.set_input_files("#image", {"name": "notes.png", "mimeType": "image/png", "buffer": b"a text"})


def _wrong_key(page: Any) -> None:
    page.fill("#key", "ff_not-the-key")
    page.press("#key", "Enter")


def _choose_a_new_model(page: Any) -> None:
    page.select_option("#model", "new-model")
    page.wait_for_selector("#plan-lead:not(:has-text('Would decode'))")


def _disconnect(page: Any) -> None:
    page.context.set_offline(True)


def _fail(service: Service) -> None:
    job_id, token = service.claimed()
    detail = "decoding needs 9,663,676,416 bytes and the device has 7,516,192,768 bytes: ask for fewer frames"
    service.store.finish(job_id, token, status=JobStatus.FAILED, error=JobError("does_not_fit", detail))


def _cancel(service: Service) -> None:
    service.http.delete(f"/jobs/{service.submit()}").raise_for_status()


def _expire(service: Service) -> None:
    with closing(open_store(service.settings.model_copy(update={"result_ttl_seconds": 0.01}))) as short:
        job_id = service.made(short)

        def gone() -> bool:
            short.expire_results(lambda _job_id: None)
            return bool(service.http.get(f"/jobs/{job_id}").json()["expired"])

        wait_for(gone, 60)


def _photo_and_prompt(page: Any) -> None:
    page.set_input_files("#image", PHOTO)
    page.fill("#prompt", PROMPT)
    page.wait_for_selector(".drop[for=image] img:visible")


def _wait_for_memory(service: Service) -> None:
    service.at(Stage.WAITING_FOR_MEMORY, 0.1, needed_bytes=6_871_947_673, free_bytes=2 * GIB)


def _denoise(service: Service) -> None:
    service.at(Stage.DENOISING, 0.3, step=1, steps=2)


def _pause(service: Service) -> None:
    service.submit()
    service.store.pause_worker(WORKER, paused=True)


_DIALOG = "#key-dialog[open]"
STATES: Sequence[State] = (
    State(
        "no-worker",
        "#service-state:has-text('Waiting for a worker')",
        refusal=True,
        loaded="#plan-lead:not(:empty)",
    ),
    State("empty", "#empty"),
    State("planning", "#plan-lead:not(:empty)", act=_choose_a_new_model, refusal=True),
    State("ready", "#plan-lead:has-text('Would decode')", act=_photo_and_prompt),
    State(
        "refused-settings-open",
        "#form-error:has-text('Choose an image first')",
        act=_open_settings_and_send,
        refusal=True,
    ),
    State("not-an-image", "#plan-lead:has-text('not an image')", act=_choose_a_text, refusal=True),
    State("queued", ".job .badge:has-text('Queued')", Service.submit),
    State("waiting-for-memory", ".job .what:has-text('memory')", _wait_for_memory),
    State("denoising", ".job[data-status=running] .what", _denoise),
    State("decoding", ".job[data-status=running] .what", lambda service: service.at(Stage.DECODING, 0.85)),
    State("failed", ".job[data-status=failed] .what", _fail),
    State("canceled", ".job .badge:has-text('Canceled')", _cancel),
    State("done", ".job[data-status=succeeded] .badge", Service.made),
    State("expired", ".job .badge", _expire),
    State("paused", "#memory > p:has-text('Every device is paused')", _pause),
    State("key-needed", "#key-dialog[open] h2", keyed=True, loaded=_DIALOG),
    State(
        "wrong-key",
        "#key-error:has-text('unknown')",
        act=_wrong_key,
        refusal=True,
        keyed=True,
        loaded=_DIALOG,
    ),
    State("offline", "#service-state:has-text('does not answer')", act=_disconnect, refusal=True),
)


class Tour:
    """One browser and two services, one of which asks for keys; goes from state to state."""

    def __init__(self, folder: Path) -> None:
        self._ends = ExitStack()
        models = folder / "models.toml"
        models.write_text(MODELS)
        keys = folder / "keys.toml"
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        keys.write_text(f'[keys.studio]\nhash = "{HASH_PREFIX}{digest}"\n')
        self._open = self._started(folder / "open", FRAMEFIT_MODELS_FILE=str(models))
        self._keyed = self._started(folder / "keyed", FRAMEFIT_KEYS_FILE=str(keys))
        self._browser = self._ends.enter_context(chromium())

    def _started(self, folder: Path, **environ: str) -> Service:
        folder.mkdir(parents=True)
        service = Service(folder, **environ)
        self._ends.callback(service.close)
        return service

    def visit(
        self, state: State, windows: Sequence[Window], out: Path | None = None
    ) -> Iterator[tuple[Window, list[str]]]:
        """What is wrong with the state in each window; a picture of each goes to `out`."""
        service = self._keyed if state.keyed else self._open
        assert service.store
        if not state.keyed:
            service.begin(with_worker=state.name != "no-worker")
        state.drive(service)
        for window in windows:
            yield window, self._looked(state, window, service.url, out)

    def _looked(self, state: State, window: Window, url: str, out: Path | None) -> list[str]:
        size = {"width": window.width, "height": window.height}
        context = self._browser.new_context(viewport=size, color_scheme=window.theme, reduced_motion="reduce")
        try:
            page = context.new_page()
            page.set_default_timeout(120_000)
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(f"script: {error}"))
            page.goto(url)
            page.wait_for_selector(state.loaded)
            if not state.keyed and state.name != "no-worker":
                page.wait_for_selector(".device svg path")
            state.act(page)
            page.wait_for_selector(state.says)
            if not state.refusal or state.name == "no-worker":
                page.locator(state.says).first.scroll_into_view_if_needed()
            if state.says.startswith(".job"):
                page.locator(".job").first.evaluate("card => card.scrollIntoView({ block: 'end' })")
            picture = page.screenshot(animations="disabled", caret="hide")
            if out is not None:
                (out / f"{state.name}-{window.name}.png").write_bytes(smaller(picture))
            look = Look(state.says.split(":has-text")[0].split(":not")[0], state.refusal, window.width)
            return errors + faults_of(page, look)
        finally:
            context.close()

    def close(self) -> None:
        """Stop browser and services."""
        self._ends.close()


def smaller(picture: bytes) -> bytes:
    """The picture in 256 colours."""
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        file, "PNG", optimize=True
    )
    return file.getvalue()


def main() -> int:
    """Make every picture, write what is wrong into a table beside them, and return how many are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "page-states")
    parser.add_argument("--state", nargs="*", default=[])
    parser.add_argument("--docs", action="store_true", help="renew the pictures of the documentation")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tour = Tour(Path(folder))
        try:
            for state in STATES:
                if given.state and state.name not in given.state:
                    continue
                for window, faults in tour.visit(state, WINDOWS, given.out):
                    found.setdefault(state.name, {})[window.name] = faults
                    print(state.name, window.name, faults or "ok", flush=True)  # noqa: T201
        finally:
            tour.close()
    if given.docs:
        for shown in IN_DOCS.glob("*.png"):
            shown.write_bytes((given.out / shown.name).read_bytes())
    (given.out / "faults.json").write_text(json.dumps(found, indent=1))
    return min(1, sum(len(faults) for windows in found.values() for faults in windows.values()))


if __name__ == "__main__":
    sys.exit(main())
