"""Measure the job table on PostgreSQL, of this checkout and of an earlier one, in one run.

Each checkout gets a database of its own on a private server (its write-ahead log synced, as in production).
Rounds alternate between the checkouts. Clients are processes with a store each, as workers are. Beside rates
and times stands the processor time of an operation, of its client and of the server with all its processes:
it depends less on what else the machine does.

- Claims: 100,000 jobs are queued, 48 clients claim one after the other.
- Heartbeats: 48 clients that hold a job each report as often as they can.
- Events: 20 clients change five jobs for 6 seconds and number each job's events under its row's lock, while
  a reader follows; events lost to the reader and events out of their job's order are counted.
- A long queue: 1,000,000 jobs are queued; one client submits, reads jobs, lists a page, and polls for a job
  that fits a small device: none does.

    python tests/bench/store.py

The earlier checkout is made of a commit of this repository (`--before`). Writes tests/bench/results/store.md.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
RESULTS = HERE.with_name("results") / "store.md"
CLIENTS, WRITERS = 48, 20
QUEUED, LONG_QUEUE = 100_000, 1_000_000
BEFORE = "f8c34e9"  # the last commit with one write lock for all
SECONDS = 6.0
ROUNDS = 3
CALLS = 20
NEEDED_BYTES = 8 * 2**30
SPEC = {
    "prompt": "a boat sails by",
    "model": "tiny",
    "width": 256,
    "height": 256,
    "num_frames": 25,
    "fps": 12,
    "num_inference_steps": 4,
    "guidance_scale": 1.0,
    "seed": 7,
}
PLAN = {"strategy": "chunked", "frames_per_chunk": 4, "detail": "x" * 300}
DEVICE = {"name": "cuda:0", "kind": "cuda", "total_bytes": 2**34, "free_bytes": 2**33, "learned": "x" * 600}


# The client: runs with the checkout under test on its path.


def client(url: str, task: str) -> None:
    """Measure one task and print the result as JSON."""
    from app.store import JobStore, Rules

    def open_store() -> Any:
        return JobStore(url, rules=Rules(max_queued=10 * LONG_QUEUE))

    if task == "migrate":
        store = open_store()
        store.migrate()
        store.close()
        sys.stdout.write("{}\n")
    elif task == "events":
        sys.stdout.write(json.dumps(_follow(open_store)) + "\n")
    elif task in ("claims", "heartbeats"):
        sys.stdout.write(json.dumps(_many(url, open_store, task)) + "\n")
    else:
        sys.stdout.write(json.dumps(_alone(url, open_store())) + "\n")


def _server_seconds(url: str) -> Callable[[], float]:
    """Return a function that tells the processor time that the server's present processes have used."""
    from sqlalchemy import create_engine, text

    def parent_of(process: str) -> str:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[1]

    engine = create_engine(url)
    with engine.connect() as connection:
        backend = connection.execute(text("select pg_backend_pid()")).scalar_one()
        server = parent_of(str(backend))
    engine.dispose()

    def seconds() -> float:
        total = 0
        for process in (path.name for path in Path("/proc").iterdir() if path.name.isdigit()):
            with suppress(OSError):  # it has ended
                if server in (process, parent_of(process)):
                    total += int(Path("/proc", process, "schedstat").read_text().split()[0])
        return total / 1e9

    return seconds


def _many(url: str, open_store: Callable[[], Any], task: str) -> dict[str, float]:
    context = multiprocessing.get_context("fork")
    ready, counts = context.Barrier(CLIENTS + 1), context.Queue()
    children = [
        context.Process(target=_one_of_many, args=(open_store, task, n, ready, counts))
        for n in range(CLIENTS)
    ]
    for child in children:
        child.start()
    server_seconds = _server_seconds(url)
    ready.wait()
    before = server_seconds()
    found = [counts.get() for _ in children]
    server = server_seconds() - before
    ready.wait()  # until then every connection stays open, and its process with its time
    for child in children:
        child.join()
    done, client = (sum(values) for values in zip(*found, strict=True))
    return {"per_second": done / SECONDS, "client": 1e6 * client / done, "server": 1e6 * server / done}


def _one_of_many(open_store: Callable[[], Any], task: str, number: int, ready: Any, counts: Any) -> None:
    store, name = open_store(), f"host{number}/gpu-{os.getpid()}"
    store.register_worker(name, DEVICE)
    wanted = {"models": ["tiny", "large"], "loaded_model": "tiny", "capacity_bytes": 2 * NEEDED_BYTES}
    held = store.claim(name, **wanted)
    call: Callable[[], Any] = lambda: store.claim(name, **wanted)  # noqa: E731
    if task == "heartbeats":
        call = lambda: store.heartbeat(name, device=DEVICE, job_id=held.job.id, token=held.token)  # noqa: E731
    ready.wait()
    end, count, used = time.monotonic() + SECONDS, 0, time.process_time()
    while time.monotonic() < end:
        assert call() is not None
        count += 1
    counts.put((count, time.process_time() - used))
    ready.wait()
    store.close()


def _follow(open_store: Callable[[], Any]) -> dict[str, float]:
    context = multiprocessing.get_context("fork")
    ready, counts = context.Barrier(WRITERS + 1), context.Queue()
    children = [
        context.Process(target=_write_events, args=(open_store, ready, counts)) for _ in range(WRITERS)
    ]
    for child in children:
        child.start()
    reader = open_store()
    seen, last = [], reader.last_event()
    ready.wait()
    end = time.monotonic() + SECONDS + 1
    while time.monotonic() < end:
        for event in reader.events_after(last):
            last = event.seq
            seen.append((event.job_id, event.data["number"]))
    written = sum(counts.get() for _ in children)
    for child in children:
        child.join()
    while page := reader.events_after(last):
        last = page[-1].seq
        seen += [(event.job_id, event.data["number"]) for event in page]
    numbers: dict[str, list[int]] = {}
    for job_id, number in seen:
        numbers.setdefault(job_id, []).append(number)
    disordered = sum(a > b for many in numbers.values() for a, b in itertools.pairwise(many))
    reader.close()
    return {"written": written, "lost": written - len(seen), "disordered": disordered}


def _write_events(open_store: Callable[[], Any], ready: Any, counts: Any) -> None:
    from sqlalchemy import text

    from app.store.rows import append_event

    store = open_store()
    jobs = [f"{n:032x}" for n in range(1, 6)]

    run = store._database.run if hasattr(store, "_database") else store._writer.run

    def change(tx: Any) -> None:
        job_id = random.choice(jobs)
        query = text("update jobs set skips = skips + 1 where id = :id returning skips")
        append_event(tx, job_id, "progress", {"number": tx.execute(query, {"id": job_id}).scalar_one()})

    ready.wait()
    end, count = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        run(change)
        count += 1
    counts.put(count)
    store.close()


def _alone(url: str, store: Any) -> dict[str, list[float]]:
    from app.jobs import JobSpec

    spec = JobSpec.model_validate(SPEC)
    made = [
        store.add(spec, b"\xff\xd8" + bytes(200_000), plan=PLAN, needed_bytes=NEEDED_BYTES) for _ in range(3)
    ]
    small = {"models": ["tiny", "large"], "loaded_model": "tiny", "capacity_bytes": NEEDED_BYTES // 2}
    calls: dict[str, Callable[[], Any]] = {
        "submit": lambda: store.add(spec, b"\xff\xd8" + bytes(200_000), plan=PLAN, needed_bytes=NEEDED_BYTES),
        "job": lambda: store.get(made[-1].id),
        "page of 50": lambda: store.page(limit=50),
        "counts": store.counts,
        "poll, nothing fits": lambda: store.claim("small", **small),
    }
    found, server_seconds = {}, _server_seconds(url)
    for name, call in calls.items():
        times = []
        for _ in range(10):  # connections and plans are made
            call()
        server, client = server_seconds(), time.process_time()
        for _ in range(CALLS):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        client, server = time.process_time() - client, server_seconds() - server
        found[name] = [1000 * statistics.median(times), 1000 * client / CALLS, 1000 * server / CALLS]
    store.close()
    return found


# The run.


def main() -> None:
    """Measure both checkouts and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default=BEFORE, help=f"the earlier commit; empty for none ({BEFORE})")
    parser.add_argument("--client", nargs=2, metavar=("URL", "TASK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        client(*arguments.client)
        return
    with ExitStack() as stack:
        checkouts = {"now": ROOT}
        if arguments.before:
            checkouts["before"] = stack.enter_context(_checkout(arguments.before))
        server = stack.enter_context(_server())
        found = {name: _measure_many(server, name, path) for name, path in checkouts.items()}
        rounds: dict[str, dict[str, list[Any]]] = {
            name: {"claims": [], "heartbeats": []} for name in checkouts
        }
        loads = []
        for _ in range(ROUNDS):
            for task in ("claims", "heartbeats"):
                for name, path in checkouts.items():
                    loads.append(_others_at_work())
                    rounds[name][task].append(_run(path, found[name], task))
        events = {name: _run(path, found[name], "events") for name, path in checkouts.items()}
        long = {}
        for name, path in checkouts.items():
            _fill(found[name], LONG_QUEUE)
            loads.append(_others_at_work())
            long[name] = _run(path, found[name], "alone")
    commits = {"now": _named(), "before": arguments.before}
    RESULTS.write_text(_report({name: commits[name] for name in checkouts}, rounds, events, long, loads))
    sys.stdout.write(RESULTS.read_text())


def _others_at_work() -> float:
    """Return how many cores other programs keep busy: measured for two seconds in which this one waits."""

    def ticks() -> tuple[int, int]:
        times = [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(times), times[3] + times[4]

    (total, idle), _ = ticks(), time.sleep(2)
    later, idle_later = ticks()
    return (os.cpu_count() or 1) * (1 - (idle_later - idle) / (later - total))


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """The files of a commit, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="framefit-before-") as folder:
        files = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit], stdout=subprocess.PIPE, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=files.stdout, check=True)
        yield Path(folder)


def _named() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--exclude", "*", "--dirty"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@contextmanager
def _server() -> Iterator[str]:
    sys.path.insert(0, str(ROOT / "tests"))
    import postgres_server

    postgres_server.OPTIONS = "-c listen_addresses='' -c shared_buffers=256MB -c max_connections=300"
    with postgres_server.running() as url:
        yield url


def _measure_many(server: str, name: str, path: Path) -> str:
    """Create the checkout's database with its queue; return its URL."""
    from sqlalchemy import create_engine, make_url, text

    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"create database bench_{name}"))
    admin.dispose()
    # On a busy machine a client may not run for seconds.
    url = make_url(server).set(database=f"bench_{name}")
    patient = {"options": "-c idle_in_transaction_session_timeout=60000"}
    url = url.update_query_dict(patient).render_as_string(hide_password=False)
    _run(path, url, "migrate")
    _fill(url, QUEUED)
    return url


def _fill(url: str, count: int) -> None:
    """Replace the queue by `count` jobs: nine of ten of one model, the rest of another."""
    from sqlalchemy import create_engine, text

    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("delete from jobs"))
        connection.execute(text("vacuum jobs"))
        connection.execute(
            text("""
                insert into jobs (id, status, stage, progress, spec, model, priority, rank, skips,
                    needed_bytes, plan, fingerprint, created_at, queued_at, expired, attempts, token,
                    cancel_requested)
                select lpad(to_hex(n), 32, '0'), 'queued', 'queued', 0, :spec,
                    case when n % 10 = 0 then 'large' else 'tiny' end, 0, n, 0, :needed, :plan, 'x', n, n,
                    false, 0, 0, false
                from generate_series(1, :count) n
            """),
            {"spec": json.dumps(SPEC), "plan": json.dumps(PLAN), "needed": NEEDED_BYTES, "count": count},
        )
        connection.execute(text("vacuum analyze"))
    engine.dispose()


def _run(path: Path, url: str, task: str) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, str(HERE), "--client", url, task]
    done = subprocess.run(command, env=environment, cwd=path, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _report(commits: dict[str, str], rounds: Any, events: Any, long: Any, loads: list[float]) -> str:
    names = [name for name in ("before", "now") if name in commits]
    heads = " | ".join(f"{name} ({commits[name]})" for name in names)
    lines = [
        "# The job table on PostgreSQL",
        "",
        f"`python tests/bench/store.py`, {os.cpu_count()} cores for server and clients together, "
        f"Python {platform.python_version()}. Rates: median of {ROUNDS} alternating rounds of "
        f"{SECONDS:.0f} s, {CLIENTS} clients. Times: median of {CALLS} calls, one client. Before each part "
        f"other programs kept {min(loads):.1f} to {max(loads):.1f} cores busy (median "
        f"{statistics.median(loads):.1f}).",
        "",
        f"| | {heads} | ratio |",
        "|---|" + "---:|" * (len(names) + 1),
    ]
    for task, title in (
        ("claims", f"claims a second, {QUEUED:,} queued"),
        ("heartbeats", "heartbeats a second"),
    ):
        of = {
            key: [statistics.median(one[key] for one in rounds[name][task]) for name in names]
            for key in ("per_second", "client", "server")
        }
        rates = of["per_second"]
        lines.append(_row(title, [f"{rate:,.0f}" for rate in rates], rates[-1] / rates[0]))
        used = [client + server for client, server in zip(of["client"], of["server"], strict=True)]
        cells = [
            f"{client:,.0f} + {server:,.0f} us"
            for client, server in zip(of["client"], of["server"], strict=True)
        ]
        lines.append(_row("- processor time each: client + server", cells, used[0] / used[-1]))
    rates = [events[name]["written"] / SECONDS for name in names]
    title = f"events a second of {WRITERS} writers (lost, out of order)"
    cells = [
        f"{r:,.0f} ({events[n]['lost']}, {events[n]['disordered']})"
        for r, n in zip(rates, names, strict=True)
    ]
    lines.append(_row(title, cells, rates[-1] / rates[0]))
    for call in long["now"]:
        times = [long[name][call] for name in names]
        title = f"{call}, {LONG_QUEUE:,} queued (processor time)"
        cells = [f"{wall:.1f} ms ({client + server:.1f})" for wall, client, server in times]
        lines.append(_row(title, cells, times[0][0] / times[-1][0]))
    return "\n".join(lines) + "\n"


def _row(title: str, values: list[str], ratio: float) -> str:
    return f"| {title} | {' | '.join(values)} | {ratio:.1f} |"


if __name__ == "__main__":
    main()
