"""Injects faults while jobs run, and counts what was lost: `make acceptance`, or
`python tests/bench/faults.py --jobs 200`.

Clients submit jobs of the built-in tiny model and follow each to its end, by event stream or by polling.
Meanwhile worker, API process and supervisor are killed with SIGKILL or suspended, another process locks the
database, the disk (a small tmpfs; mounting it needs root) is filled, the data folder becomes read-only or is
moved away for a while, the running job's folder is deleted, and clients open connections that read or write
next to nothing. Half of the webhook receivers never answer. Each fault waits until a job is in a randomly
drawn stage, so that every stage is hit. A new kind of fault is a method of `World` and a line of `WEIGHTS`.

At the end every job must have succeeded once, every video must decode to its last frame, and every client
must have seen the end. All the time /healthz is compared with whether jobs can be stored: it must not be
wrong for longer than `HEALTH_SECONDS`.
"""

import argparse
import http.server
import io
import json
import os
import random
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "acceptance")]

from running_service import RunningService  # noqa: E402

from app.artifacts.data_folder import FULL_BYTES  # noqa: E402
from app.config import Settings  # noqa: E402
from app.jobs import JobStatus, Stage  # noqa: E402
from app.store import StoreError, open_store  # noqa: E402
from app.store.database.sqlite import BUSY_TIMEOUT_SECONDS  # noqa: E402
from tests.bench.campaigns import is_whole  # noqa: E402
from tests.bench.fault_kinds.clocks import Suspensions  # noqa: E402

RESULTS = Path(__file__).with_name("results")
# A second or so of work each, so that there is a middle to be hit in.
FIELDS = {"model": "tiny", "width": 96, "height": 96, "num_frames": 17, "num_inference_steps": 6, "fps": 8}
STRATEGIES = ("auto", "batched", "chunked", "per_frame")
STAGES = (Stage.LOADING, Stage.DENOISING, Stage.DECODING, Stage.ENCODING)
SUSPENSIONS = ("suspend_worker", "suspend_api", "suspend_supervisor", "suspend_service")
STAGE_SECONDS = 4.0  # so long the stage that was drawn is waited for, then any will do
RUNNING_SECONDS = 40.0
SHARE_SECONDS = 60.0
# Now and then the database is locked for longer than anyone waits for it.
LOCK_SECONDS = (1.0, 2.0, 3.0, 4.0, BUSY_TIMEOUT_SECONDS + 3)
AWAY_SECONDS = (1.0, 3.0, 12.0)
HEALTH_SECONDS = 10.0
HEALTH_EVERY_SECONDS = 0.5
SLOW_CLIENTS = 40
TMPFS_MIB = 192
WEIGHTS = {
    "kill_worker": 3,
    "kill_api": 2,
    "lock_database": 2,
    "fill_disk": 2,
    "kill_supervisor": 1,
    "make_folder_read_only": 1,
    "move_data_folder": 1,
    "delete_job_folder": 1,
    "stall_clients": 1,
}
NEED_A_MOUNT = ("fill_disk", "make_folder_read_only")
CLIENTS = 10
JOB_SECONDS = 900.0
# Each request has a connection of its own, as the service may be another one by then. Without a context made
# once, each would read the certificates of all authorities: 25 ms, hundreds of times a minute.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
REQUEST: dict[str, Any] = {"timeout": 40, "verify": NO_TLS}
ENVIRONMENT = {
    "FRAMEFIT_WEBHOOK_SECRET": "a secret for this run",
    "FRAMEFIT_WEBHOOK_ALLOW_PRIVATE": "true",
    "FRAMEFIT_LEASE_SECONDS": "6",
    "FRAMEFIT_HEARTBEAT_SECONDS": "1",
    # Ours is the fault, not the job's: what would end a job that kills its workers must not end these.
    "FRAMEFIT_MAX_ATTEMPTS": "1000",
    "FRAMEFIT_MIN_FREE_DISK_BYTES": "0",  # the disk is to be full for workers, too
    "OMP_NUM_THREADS": "1",
}
LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("begin exclusive"); time.sleep(float(sys.argv[2])); connection.execute("rollback")
"""


@dataclass(slots=True)
class Report:
    """Counts of jobs, faults and losses."""

    jobs: int = 0
    seconds: float = 0.0
    faults: dict[str, dict[str, int]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    finished_twice: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    wrong_health: list[str] = field(default_factory=list)
    retried: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    webhooks_answered: int = 0
    webhooks_left_hanging: int = 0
    load_average: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled, corrupted or left unsaid."""
        return not (self.lost or self.finished_twice or self.corrupt or self.unseen or self.wrong_health)


class World(Suspensions):
    """The service under attack; started again whenever its parent process is gone."""

    def __init__(self, data_dir: Path, lock_seconds: Sequence[float], away_seconds: Sequence[float]) -> None:
        self.data_dir = data_dir
        self.lock_seconds = lock_seconds
        self.lease_seconds = float(ENVIRONMENT["FRAMEFIT_LEASE_SECONDS"])
        self.away_seconds = away_seconds
        self.over = threading.Event()
        self.service = self._start()

    def _start(self) -> RunningService:
        while True:
            try:
                return RunningService(self.data_dir, ENVIRONMENT)
            except (AssertionError, OSError):  # a start on a full disk or a locked database: as systemd would
                time.sleep(0.5)

    @property
    def url(self) -> str:
        return str(self.service.http.base_url)

    def kill_worker(self) -> None:
        self._kill("worker")

    def kill_api(self) -> None:
        self._kill("api")

    def _kill(self, command: str) -> None:
        for process in self.service.processes():
            with suppress(Exception):
                if command in process.cmdline():
                    process.kill()

    def kill_supervisor(self) -> None:
        self.service.kill()
        self.service = self._start()

    def lock_database(self) -> None:
        seconds = str(random.choice(self.lock_seconds))
        path = str(self.data_dir / "framefit.sqlite3")
        subprocess.run([sys.executable, "-c", LOCK, path, seconds], check=True)

    def fill_disk(self) -> None:
        filler = self.data_dir / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                for size in (2**20, 4096):
                    with suppress(OSError):
                        while True:
                            file.write(bytes(size))
            time.sleep(random.uniform(1, 4))
        finally:
            filler.unlink(missing_ok=True)

    def make_folder_read_only(self) -> None:
        # What is open for writing stays so; nothing new can be made.
        place = str(self.data_dir)
        subprocess.run(["mount", "--bind", place, place], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
            time.sleep(random.choice(self.away_seconds))
        finally:
            subprocess.run(["umount", "-l", place], check=True)

    def move_data_folder(self) -> None:
        away = self.data_dir.with_name("away")
        self.data_dir.rename(away)
        time.sleep(random.choice(self.away_seconds))
        away.rename(self.data_dir)  # fails where anything was made in its place

    def delete_job_folder(self) -> None:
        folders = [one for one in (self.data_dir / "jobs").glob("*") if not (one / "video.mp4").exists()]
        for folder in folders[-1:]:
            shutil.rmtree(folder, ignore_errors=True)

    def stall_clients(self) -> None:
        host, port = self.service.http.base_url.host, self.service.http.base_url.port
        head = f"POST /generate HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1000000\r\n\r\n"
        asks = f"GET /openapi.json HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n" * 50
        opened = []
        for number in range(SLOW_CLIENTS):
            with suppress(OSError):
                client = socket.create_connection((host, port or 80), timeout=5)
                client.sendall((asks if number % 2 else head).encode())
                opened.append(client)
        time.sleep(random.choice(self.away_seconds))
        for client in opened:
            client.close()

    def see_to_it(self) -> None:
        """Start the service again where it ended by itself."""
        if self.service.process.poll() is not None:
            self.service.http.close()
            self.service = self._start()


class Work:
    """Numbers of jobs to hand in: at least so many, and on until the last fault is done."""

    def __init__(self, jobs: int) -> None:
        self.attacked = threading.Event()
        self.handed_in = 0
        self.ended = 0
        self._jobs = jobs
        self._lock = threading.Lock()

    def next(self) -> int | None:
        """The next number; None where it is enough."""
        with self._lock:
            if self.handed_in >= self._jobs and self.attacked.is_set():
                return None
            self.handed_in += 1
            return self.handed_in

    def note_end(self) -> None:
        """A client has seen the end of its job."""
        with self._lock:
            self.ended += 1

    def wait_for_share(self, share: float) -> None:
        """Until that share of the jobs has ended, or for a while: faults are spread over the jobs."""
        deadline = time.monotonic() + SHARE_SECONDS
        while self.ended < share * self._jobs and time.monotonic() < deadline:
            time.sleep(0.2)


def attack(world: World, work: Work, faults: int, report: Report, weights: dict[str, int]) -> None:
    """Do `faults` faults at random moments: each kind once, then about as often as it weighs."""
    more = random.choices(list(weights), list(weights.values()), k=max(0, faults - len(weights)))
    order = [*weights, *more][:faults]
    random.shuffle(order)
    for number, kind in enumerate(order):
        work.wait_for_share(0.9 * number / len(order))
        world.see_to_it()
        stage = moment(world.data_dir)
        getattr(world, kind)()
        hit = report.faults.setdefault(kind, {})
        hit[stage] = hit.get(stage, 0) + 1
    work.attacked.set()
    while not world.over.wait(1):
        world.see_to_it()


def moment(data_dir: Path) -> str:
    """Wait for a running job, in a stage drawn at random if one gets there soon; the stage it is in."""
    wanted, started = random.choice(STAGES), time.monotonic()
    store = open_store(Settings(data_dir=data_dir))
    try:
        while (waited := time.monotonic() - started) < RUNNING_SECONDS:
            with suppress(StoreError):
                running = store.page(status=JobStatus.RUNNING, limit=1)
                if running and (running[0].stage is wanted or waited > STAGE_SECONDS):
                    return running[0].stage
            time.sleep(0.004)
    finally:
        store.close()
    return "no job was running"


class Client:
    """Hands in one job after another and follows each to its end; keeps trying, as a client must."""

    def __init__(self, world: World, work: Work, report: Report, hook: str) -> None:
        self._world, self._work, self._report, self._hook = world, work, report, hook
        self._image = _picture()

    def work(self) -> None:
        while (number := self._work.next()) is not None:
            job_id = self._submit(number)
            deadline = time.monotonic() + JOB_SECONDS
            while (status := self._followed(job_id, number % 2 == 0, deadline)) == "failed":
                code = self._retry(job_id)
                self._report.retried[code] = self._report.retried.get(code, 0) + 1
            if status is None:
                self._report.unseen.append(job_id)
            self._work.note_end()

    def _submit(self, number: int) -> str:
        form = {"prompt": f"job {number}", "seed": str(number), "webhook_url": f"{self._hook}/{number}"}
        form |= {name: str(value) for name, value in FIELDS.items()}
        form["decode_strategy"] = STRATEGIES[number % len(STRATEGIES)]

        def post() -> httpx.Response:
            return httpx.post(
                f"{self._world.url}/generate",
                data=form,
                files={"image": ("photo.png", self._image)},
                headers={"Idempotency-Key": str(number)},
                **REQUEST,
            )

        return str(self._insisted(post)["id"])

    def _retry(self, job_id: str) -> str:
        job = self._insisted(lambda: httpx.get(f"{self._world.url}/jobs/{job_id}", **REQUEST))
        code = str((job["error"] or {"code": "none"})["code"])
        self._insisted(lambda: httpx.post(f"{self._world.url}/jobs/{job_id}/retry", **REQUEST), (409,))
        return code

    def _insisted(self, ask: Callable[[], httpx.Response], also: tuple[int, ...] = ()) -> dict[str, Any]:
        deadline = time.monotonic() + JOB_SECONDS
        while True:
            with suppress(httpx.HTTPError):
                answer = ask()
                if answer.is_success or answer.status_code in also:
                    found: dict[str, Any] = answer.json()
                    return found
                assert answer.status_code in (429, 503, 507), answer.text
            assert time.monotonic() < deadline, "the service did not come back"
            time.sleep(0.3)

    def _followed(self, job_id: str, by_stream: bool, deadline: float) -> str | None:
        """The status that the client sees in the end; None where it sees none in time."""
        seen = ""
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if by_stream:
                    outcome, seen = self._streamed(job_id, seen)
                else:
                    status = httpx.get(f"{self._world.url}/jobs/{job_id}", **REQUEST).json().get("status")
                    outcome = status if status in ("succeeded", "failed", "canceled") else None
                if outcome is not None:
                    return outcome
            time.sleep(0.3)
        return None

    def _streamed(self, job_id: str, seen: str) -> tuple[str | None, str]:
        headers = {"Last-Event-ID": seen} if seen else {}
        url, kind, outcome = f"{self._world.url}/jobs/{job_id}/events", "", None
        with suppress(httpx.HTTPError), httpx.stream("GET", url, headers=headers, **REQUEST) as answer:
            if answer.status_code == 200:
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "data" and kind == "finished":
                        outcome = json.loads(value)["outcome"]
                    elif name == "id":
                        seen = value
        return outcome, seen


def watch_health(world: World, report: Report) -> None:
    """Compare /healthz with whether the store takes writes, until the end."""
    wrong_since: float | None = None
    while not world.over.wait(HEALTH_EVERY_SECONDS):
        said, true = _healthy(world), _stores(world)
        if said is None or said == true:
            wrong_since = None
            continue
        now = time.monotonic()
        wrong_since = wrong_since or now
        if now - wrong_since > HEALTH_SECONDS:
            report.wrong_health.append(f"healthz said {said} for {now - wrong_since:.0f} s")
            wrong_since = None


def _healthy(world: World) -> bool | None:
    """What /healthz says; None while nobody answers, which says the truth in its way."""
    try:
        return httpx.get(f"{world.url}/healthz", timeout=5, verify=NO_TLS).status_code == 200
    except httpx.HTTPError:
        return None


def _stores(world: World) -> bool:
    """Whether a job could be stored: the folder is there, writable and not full, and no lock is held."""
    place = world.data_dir
    try:
        disk = os.statvfs(place)
        if not os.access(place, os.W_OK) or disk.f_bavail * disk.f_frsize < FULL_BYTES:
            return False
        uri = f"file:{place / 'framefit.sqlite3'}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=2, isolation_level=None)) as connection:
            connection.execute("begin immediate")
            connection.execute("rollback")
    except (OSError, sqlite3.Error):
        return False
    return True


def _picture() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(file, "PNG")
    return file.getvalue()


@contextmanager
def receivers(report: Report) -> Iterator[str]:
    """A server for webhooks that answers every second one and lets the others wait until they give up."""
    stopping = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if int(self.path.rsplit("/", 1)[1]) % 2:
                report.webhooks_left_hanging += 1
                stopping.wait(15)
                return
            self.rfile.read(int(self.headers["Content-Length"]))
            report.webhooks_answered += 1
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    stopping.set()
    server.shutdown()
    server.server_close()


@contextmanager
def folder(report: Report, model: Path) -> Iterator[Path]:
    """A data folder on a small tmpfs, or an ordinary folder if none can be mounted."""
    with tempfile.TemporaryDirectory(prefix="framefit-faults-") as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m", "tmpfs", name]
        mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        if not mounted:
            report.skipped |= dict.fromkeys(NEED_A_MOUNT, "a tmpfs can only be mounted by root")
        try:
            data = Path(name) / "data"
            (data / "models").mkdir(parents=True)
            (data / "models" / "tiny").symlink_to(model)
            yield data
        finally:
            if mounted:
                subprocess.run(["umount", "-l", name], check=True)


def admit(data_dir: Path, expected: int, report: Report) -> None:
    """Look at what is in the table and on the disk now that the dust has settled."""
    store = open_store(Settings(data_dir=data_dir))
    jobs = store.page(limit=expected + 100)
    report.jobs = len(jobs)
    report.lost += [job.id for job in jobs if job.status != "succeeded"]
    report.lost += ["never accepted, or accepted twice"] * abs(expected - len(jobs))
    attempts: Counter[str] = Counter()
    for job in jobs:
        events = store.events_after(0, 100_000, job.id)
        ends = [event.data["outcome"] for event in events if event.kind == "finished"]
        if ends.count("succeeded") > 1:
            report.finished_twice.append(job.id)
        attempts[str(sum(event.kind == "claimed" for event in events))] += 1
        if job.status == "succeeded" and not is_whole(data_dir, job.id, FIELDS["num_frames"]):
            report.corrupt.append(job.id)
    report.attempts = dict(sorted(attempts.items()))
    store.close()


def campaign(
    jobs: int,
    faults: int,
    model: Path,
    lock_seconds: Sequence[float] = LOCK_SECONDS,
    away_seconds: Sequence[float] = AWAY_SECONDS,
    *,
    kinds: Mapping[str, int] = WEIGHTS | dict.fromkeys(SUSPENSIONS, 1),
) -> Report:
    """Run `jobs` jobs through `faults` faults. `kinds` are those to draw from, with their weights."""
    report = Report(load_average=os.getloadavg()[0])
    started = time.monotonic()
    with folder(report, model) as data_dir, receivers(report) as hook:
        world = World(data_dir, lock_seconds, away_seconds)
        weights = {kind: weight for kind, weight in kinds.items() if kind not in report.skipped}
        work = Work(jobs)
        attacker = threading.Thread(target=attack, args=(world, work, faults, report, weights))
        clients = [threading.Thread(target=Client(world, work, report, hook).work) for _ in range(CLIENTS)]
        doctor = threading.Thread(target=watch_health, args=(world, report))
        try:
            for thread in (attacker, doctor, *clients):
                thread.start()
            for thread in clients:
                thread.join()
            world.over.set()
            attacker.join()
            doctor.join()
            world.see_to_it()
            admit(data_dir, work.handed_in, report)
        finally:
            world.over.set()
            world.service.stop()
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _by_stage(hit: dict[str, int]) -> str:
    return f"{sum(hit.values())} ({', '.join(f'{stage}: {n}' for stage, n in sorted(hit.items()))})"


def as_markdown(report: Report) -> str:
    """The report for people."""
    rows = [
        ("jobs handed in, each followed by a client", report.jobs),
        *(
            (f"fault: {kind.replace('_', ' ')}", _by_stage(hit))
            for kind, hit in sorted(report.faults.items())
        ),
        *((f"skipped: {kind.replace('_', ' ')}", why) for kind, why in report.skipped.items()),
        ("webhooks answered / left hanging", f"{report.webhooks_answered} / {report.webhooks_left_hanging}"),
        ("jobs by number of attempts", ", ".join(f"{n} of {k}" for k, n in report.attempts.items())),
        ("failures with a code that the client retried", json.dumps(report.retried)),
        ("**jobs lost**", len(report.lost)),
        ("**jobs finished twice**", len(report.finished_twice)),
        ("**videos corrupt**", len(report.corrupt)),
        ("**clients that saw no end**", len(report.unseen)),
        ("**times that health was wrong for longer than 10 s**", len(report.wrong_health)),
        ("seconds", report.seconds),
        ("load average at the start", round(report.load_average, 1)),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    head = "# Faults while jobs run\n\n`make acceptance`; model `tiny` on the CPU.\n\n| | |\n|---|---|"
    return f"{head}\n{table}\n"


def main() -> None:
    """Run the campaign, write its results, and fail where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--faults", type=int, default=30)
    options = parser.parse_args()
    from app.pipelines import tiny

    with tempfile.TemporaryDirectory() as name:
        report = campaign(options.jobs, options.faults, tiny.build(Path(name) / "tiny"))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "faults.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    (RESULTS / "faults.md").write_text(as_markdown(report))
    sys.stdout.write(as_markdown(report))
    sys.exit(not report.clean)


if __name__ == "__main__":
    main()
