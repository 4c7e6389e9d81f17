"""Measure the service with a million finished jobs behind, on SQLite and PostgreSQL.

Databases are filled by bulk SQL: a thousand and a million jobs that succeeded, each with the 22 events of a
usual run, and 100 queued jobs. The counters are stored as the exporter does, up to 20,000 events before the
last: more are never left to count after a `kill -9`.

- Claim, first page of jobs (all, and of one status, model, key or since an hour ago): median of 30 calls, in
  turns on both databases.
- `GET /jobs?limit=200` of an API process: the same.
- /metrics: from the start of an API process until it shows the counters, with all events and with none.
- Deletion of events: those of the first seconds, as the exporter does it.
- A start without stored counters, as after the upgrade of an earlier version: events counted a second.

    python tests/bench/many_jobs.py            # --jobs 100000 for less, --only sqlite for one

Writes tests/bench/results/many_jobs.md. Needs about 15 GB of disk for a database of a million jobs.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import create_engine, make_url, text

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import postgres_server  # noqa: E402 - after the path
from scraped import total  # noqa: E402

from app.jobs import Event, JobStatus  # noqa: E402
from app.scheduling.eta import RunTimes  # noqa: E402
from app.service.exposition.exporter import SAVE_EVENTS, Exporter  # noqa: E402
from app.service.exposition.metrics import ServiceMetrics  # noqa: E402
from app.store import JobStore, Rules  # noqa: E402
from app.store.upkeep.counters import Snapshot  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "many_jobs.md"
FEW, CALLS, QUEUED = 1000, 30, 100
NOW = time.time()
SPEC = {
    "prompt": "a boat sails by while the sun sets behind the mountains",
    "negative_prompt": "blurry",
    "model": "tiny",
    "width": 256,
    "height": 256,
    "num_frames": 25,
    "fps": 12,
    "num_inference_steps": 4,
    "guidance_scale": 1.0,
    "seed": 7,
    "image_size": "1080x1920",
}
PLAN = {"strategy": "chunked", "frames_per_chunk": 4, "predicted_seconds": 3.0, "detail": "x" * 500}
DECODE = {
    "strategy": "chunked",
    "frames_per_chunk": 2,
    "seconds": 3.1,
    "predicted_peak_bytes": 2**30,
    "measured_peak_bytes": 2**30 - 2**24,
    "exact": True,
}
RESULT = {
    "frames": 25,
    "width": 256,
    "height": 256,
    "bytes": 123456,
    "thumbnail": True,
    "video_path": "video.mp4",
}
EVENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("accepted", {"model": "tiny", "priority": 0}),
    (
        "claimed",
        {"worker_id": "host/cpu/1", "host": "host", "attempt": 1, "queued_seconds": 2.0, "model": "tiny"},
    ),
    ("stage", {"stage": "loading", "progress": 0.0}),
    ("loaded", {"seconds": 1.0, "placement": "resident"}),
    ("stage", {"stage": "denoising", "progress": 0.05}),
    *(("progress", {"stage": "denoising", "progress": 0.1 * step}) for step in range(1, 5)),
    ("denoised", {"steps": 4, "seconds": 4.0, "exact": True}),
    ("stage", {"stage": "decoding", "progress": 0.6}),
    ("plan", {"strategy": "chunked", "reason": "fastest_that_fits", "frames_per_chunk": 2}),
    *(("preview", {"number": number}) for number in range(2)),
    *(
        ("chunk", {"frames_done": 5 * n, "of": 25, "seconds": 0.6, "progress": 0.6 + 0.06 * n})
        for n in range(1, 6)
    ),
    ("stage", {"stage": "encoding", "progress": 0.95}),
    ("progress", {"stage": "encoding", "progress": 0.99}),
    (
        "finished",
        {
            "outcome": "succeeded",
            "model": "tiny",
            "duration_seconds": 12.0,
            "durations": {"loading": 1.0, "denoising": 4.0, "decoding": 3.1, "encoding": 0.4},
            "decode": DECODE,
            "error": None,
        },
    ),
)
COUNTER = "framefit_jobs_total"

# The SQL of both databases, one job a second up to an hour ago.
SERIES = {
    "sqlite": """
        (with recursive s(n) as (select 1 union all select n + 1 from s where n < :count) select n from s) s
    """,
    "postgresql": "generate_series(1, :count) s(n)",
}
ID = {
    "sqlite": "printf('%012x%020x', cast(({at}) * 1000 as integer), {n})",
    "postgresql": "lpad(to_hex(cast(({at}) * 1000 as bigint)), 12, '0') || lpad(to_hex({n}), 20, '0')",
}
JOBS = """
    insert into jobs (id, status, stage, progress, spec, model, priority, rank, skips, needed_bytes, plan,
        owner, fingerprint, created_at, queued_at, started_at, finished_at, expired, attempts, token,
        worker_id, cancel_requested, decode, result)
    select {id}, '{status}', '{stage}', 1, :spec, case when n % 10 = 5 then 'rare' else 'tiny' end, 0, {at},
        0, 1000, :plan, case when n % 10 = 0 then 'studio' end, 'x', {at}, {at}, {at} + 1, {at} + 13, false,
        1, 1, 'host/cpu/1', false, :decode, :result
    from {series}
"""
INSERT_EVENTS = """
    insert into events (job_id, kind, at, data)
    select {id}, k.kind, {at} + k.number, k.data from {series} cross join kinds k order by s.n, k.number
"""


def log(line: str) -> None:
    """Tell what is going on."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def fill(url: str, jobs: int) -> None:
    """Fill a database with `jobs` finished jobs, their events, and some queued jobs."""
    store = JobStore(url)
    store.migrate()
    store.close()
    kind = make_url(url).get_backend_name()
    engine = create_engine(url)
    values = {"spec": json.dumps(SPEC), "plan": json.dumps(PLAN)}
    values |= {"decode": json.dumps(DECODE), "result": json.dumps(RESULT)}
    at = f"({NOW - 3600 - jobs} + n)"
    with engine.begin() as connection:
        if kind == "sqlite":
            connection.exec_driver_sql("pragma cache_size = -400000")
        else:
            connection.exec_driver_sql("set local synchronous_commit = off")
        finished = {"id": ID[kind].format(at=at, n="n"), "at": at, "status": "succeeded", "stage": "finished"}
        connection.execute(text(JOBS.format(series=SERIES[kind], **finished)), {**values, "count": jobs})
        late = f"({NOW - 60} + n)"
        queued = {"id": ID[kind].format(at=late, n="n"), "at": late, "status": "queued", "stage": "queued"}
        connection.execute(text(JOBS.format(series=SERIES[kind], **queued)), {**values, "count": QUEUED})
        connection.exec_driver_sql("create table kinds (number integer, kind text, data text)")
        rows = [
            {"number": n, "kind": name, "data": json.dumps(data)} for n, (name, data) in enumerate(EVENTS)
        ]
        connection.execute(text("insert into kinds values (:number, :kind, :data)"), rows)
        statement = INSERT_EVENTS.format(series=SERIES[kind], id=ID[kind].format(at=at, n="n"), at=at)
        connection.execute(text(statement), {"count": jobs})
        connection.exec_driver_sql("drop table kinds")
    if kind == "postgresql":
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql("vacuum analyze")
    engine.dispose()


def store_counters(url: str, jobs: int) -> None:
    """Store the counters of all events but the last, as the exporter does."""
    store = JobStore(url)
    metrics, run_times = ServiceMetrics({"tiny": "AutoencoderKLLTXVideo"}), RunTimes()
    exporter = Exporter(store, {"metrics": metrics, "run_times": run_times}, keep_seconds=1.0)
    exporter.begin()
    metrics.restore(None)
    events = [Event(n, "job", kind, 0.0, data) for n, (kind, data) in enumerate(EVENTS)]
    left = min(jobs, SAVE_EVENTS // len(EVENTS))
    metrics.apply(events)
    state = metrics.state()
    for one in state["metrics"].values():  # as after that many jobs
        for series in one["series"]:
            series[1:] = [_times(value, jobs - left) for value in series[1:]]
    metrics.restore(state)
    exporter._save(last := (jobs - left) * len(EVENTS))
    store._database.run(lambda tx: tx.execute(text("delete from exporters")).rowcount)
    loaded = store.counter_snapshot()
    assert isinstance(loaded, Snapshot)
    assert loaded.seq == last
    store.close()


def _times(value: Any, factor: int) -> Any:
    return [factor * one for one in value] if isinstance(value, list) else factor * value


def side_by_side(few: Callable[[], Any], many: Callable[[], Any]) -> tuple[float, float]:
    """Median milliseconds of two calls that take turns: other load on the machine meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    few(), many()
    for _ in range(CALLS):
        for call, taken in zip((few, many), times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def calls(store: JobStore) -> dict[str, Callable[[], Any]]:
    """The store's operations whose time must not depend on the history."""
    wanted = {"models": ["tiny", "rare"], "capacity_bytes": 2**30}
    return {
        "claim": lambda: store.claim("host/cpu/1", **wanted),
        "claim that finds nothing": lambda: store.claim("host/cpu/1", models=["tiny"], capacity_bytes=1),
        "first page (50)": store.page,
        "first page, status=succeeded": lambda: store.page(status=JobStatus.SUCCEEDED),
        "first page, status=failed (none)": lambda: store.page(status=JobStatus.FAILED),
        "first page, model=rare": lambda: store.page(model="rare"),
        "first page of a key": lambda: store.page(owner="studio"),
        "first page of a key, not deleted": lambda: store.page(owner="studio", with_deleted=False),
        "first page since now (none)": lambda: store.page(since=NOW + 60),
        "search, status and model (none)": lambda: store.search(status=JobStatus.FAILED, model="tiny"),
        "search, words that are nowhere": lambda: store.search(words=["nowhere"]),
        "search, ended jobs of a key and model": lambda: store.search(
            ended=True, owner="studio", model="rare"
        ),
        "oldest first": lambda: store.page(newest_first=False),
        "counts": store.counts,
    }


@contextmanager
def api(url: str, folder: Path) -> Iterator[tuple[str, float, int]]:
    """An API process; gives its address, the time at which it was started, and its process id."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("FRAMEFIT_")}
        environ |= {"FRAMEFIT_DATABASE_URL": url, "FRAMEFIT_DATA_DIR": str(folder), "PYTHONPATH": str(ROOT)}
        environ["FRAMEFIT_EVENT_TTL_SECONDS"] = "1e12"
        command = [sys.executable, "-m", "app", "api", "--listen-fd", str(listener.fileno())]
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env=environ, cwd=ROOT, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
        )
    try:
        yield address, start, process.pid
    finally:
        process.kill()
        process.wait()


def ready(url: str, folder: Path) -> tuple[float, float, float, float]:
    """Seconds of a start until it answers, until it shows the counters, and of processor time; a counter."""
    with (
        api(url, folder) as (address, start, process),
        httpx.Client(base_url=address, timeout=3600) as client,
    ):
        wait(lambda: client.get("/healthz").status_code == 200)
        answers = time.perf_counter() - start
        wait(lambda: COUNTER in client.get("/metrics").text)
        seconds = time.perf_counter() - start
        used = sum(psutil.Process(process).cpu_times()[:2])
        counted = total(client.get("/metrics").text, COUNTER, outcome="succeeded")
    return answers, seconds, used, counted


def wait(done: Callable[[], bool]) -> None:
    """Ask again and again."""
    while True:
        try:
            if done():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.01)


def listings(few: str, many: str, folder: Path) -> tuple[float, float]:
    """Milliseconds of GET /jobs?limit=200."""
    with (
        api(few, folder) as (address, _, _),
        api(many, folder) as (other, _, _),
        httpx.Client(timeout=3600) as client,
    ):

        def get(url: str) -> None:
            assert len(client.get(f"{url}/jobs?limit=200").raise_for_status().json()["jobs"]) == 200

        for url in (address, other):
            wait(lambda url=url: "framefit_starting 0.0" in client.get(f"{url}/metrics").text)  # type: ignore[misc]
        return side_by_side(lambda: get(address), lambda: get(other))


def deletion(url: str) -> float:
    """Events deleted a second."""
    store = JobStore(url)
    metrics = ServiceMetrics({"tiny": "AutoencoderKLLTXVideo"})
    exporter = Exporter(store, {"metrics": metrics, "run_times": RunTimes()}, keep_seconds=1.0)
    exporter.turn(exporter.begin(), at_end=True)
    start, deleted = time.perf_counter(), 0
    for _ in range(5):
        deleted += exporter.retire_events()
    seconds = time.perf_counter() - start
    exporter.close(0)
    store.close()
    return deleted / seconds


def delete_events(url: str) -> None:
    """Leave no events, as their deletion does in the end."""
    store = JobStore(url)
    kind = make_url(url).get_backend_name()
    if kind == "postgresql":
        with store._database.writes.begin() as connection:
            connection.exec_driver_sql("truncate events")
    else:
        path = str(make_url(url).database)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("delete from events")
    store.close()


@contextmanager
def databases(kind: str, work: Path) -> Iterator[Callable[[str], str]]:
    """Makes empty databases of that kind, by name."""
    if kind == "sqlite":
        yield lambda name: f"sqlite:///{work / name}.sqlite3"
        return
    postgres_server.OPTIONS = (
        "-c listen_addresses='' -c shared_buffers=512MB -c max_connections=200 -c max_wal_size=8GB"
    )
    with postgres_server.running() as server:
        admin = create_engine(server, isolation_level="AUTOCOMMIT")

        def create(name: str) -> str:
            with admin.connect() as connection:
                connection.exec_driver_sql(f"create database {name}")
            return make_url(server).set(database=name).render_as_string(hide_password=False)

        yield create
        admin.dispose()


def measure(kind: str, jobs: int, work: Path) -> dict[str, Any]:
    """All figures of one kind of database."""
    found: dict[str, Any] = {}
    folder = work / "data"
    folder.mkdir(exist_ok=True)
    with databases(kind, work) as create:
        urls = {"few": create("few"), "many": create("many")}
        for name, count in (("few", FEW), ("many", jobs)):
            log(f"{kind}: filling {count:,} jobs")
            fill(urls[name], count)
        log(f"{kind}: calls")
        stores = [JobStore(url, rules=Rules(max_queued=10**7)) for url in urls.values()]
        few, many = map(calls, stores)
        found["calls"] = {name: side_by_side(few[name], many[name]) for name in few}
        for store in stores:
            store.close()
        found["uncounted"] = ready(urls["few"], folder)
        for name, count in (("few", FEW), ("many", jobs)):
            store_counters(urls[name], count)
            log(f"{kind}: starts with {count:,} jobs behind")
            found[f"{name} behind"] = ready(urls[name], folder)
        found["calls"]["GET /jobs?limit=200"] = listings(urls["few"], urls["many"], folder)
        found["deletion"] = deletion(urls["many"])
        log(f"{kind}: {found['deletion']:,.0f} events deleted a second; deleting the rest")
        for name in ("few", "many"):
            delete_events(urls[name])
            found[f"{name} retired"] = ready(urls[name], folder)
        rate = create("rate")
        fill(rate, 20_000)
        found["rate"] = 20_000 * len(EVENTS) / (ready(rate, folder)[1] - found["few retired"][1])
    return found


def report(jobs: int, found: dict[str, dict[str, Any]]) -> str:
    """The results as a page."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    events = jobs * len(EVENTS)
    lines = [
        "# A long history",
        "",
        f"`python tests/bench/many_jobs.py --jobs {jobs}` at {commit}: {os.cpu_count()} cores for everything "
        f"and for other work (load {os.getloadavg()[1]:.1f}), Python {platform.python_version()}, SQLite "
        f"{sqlite3.sqlite_version}. "
        f"{jobs:,} finished jobs with {events:,} events, beside {FEW:,} jobs; {QUEUED} jobs are queued. "
        f"Times of calls: median of {CALLS}, in ms.",
    ]
    for kind, one in found.items():
        lines += ["", f"## {kind}", "", f"| | {FEW:,} jobs | {jobs:,} jobs | ratio |", "|---|---:|---:|---:|"]
        lines += [f"| {name} | {a:.2f} | {b:.2f} | {b / a:.2f} |" for name, (a, b) in one["calls"].items()]
        lines += [
            "",
            "Seconds from the start of an API process:",
            "",
            "| | answers | shows the counters | its processor time |",
        ]
        lines += ["|---|---:|---:|---:|"]
        starts = {
            f"{FEW:,} jobs, no stored counters": one["uncounted"],
            f"{FEW:,} jobs with their events": one["few behind"],
            f"{jobs:,} jobs with {events:,} events": one["many behind"],
            f"{jobs:,} jobs, events deleted": one["many retired"],
        }
        lines += [
            f"| {name} | {times[0]:.2f} | {times[1]:.2f} | {times[2]:.2f} |" for name, times in starts.items()
        ]
        lines += [
            "",
            f"Counters shown: {one['many behind'][3]:,.0f} jobs. Events deleted: {one['deletion']:,.0f} a "
            "second. Without stored counters, as after the upgrade of an earlier version: "
            f"{one['rate']:,.0f} events a second, so {events:,} take {events / one['rate'] / 60:.0f} min.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument(
        "--only", choices=("sqlite", "postgresql"), help="measure one kind, and print the results"
    )
    arguments = parser.parse_args()
    found = {}
    for kind in ("sqlite", "postgresql") if arguments.only is None else (arguments.only,):
        work = Path(tempfile.mkdtemp(prefix="framefit-many-jobs-"))
        try:
            found[kind] = measure(kind, arguments.jobs, work)
        finally:
            shutil.rmtree(work)
    page = report(arguments.jobs, found)
    if arguments.only is None:
        RESULTS.write_text(page)
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
