"""Measures how many jobs a second the API accepts, each durable before its 202.

    python tests/bench/load_intake.py

Three servers, one process each, are compared under the same clients: a bare FastAPI route that reads the same
multipart body, the service without syncing its database, and the unchanged service. The last two start with
a long queue.
"""

import argparse
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from PIL import Image
from sqlalchemy import URL

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
RESULTS = Path(__file__).with_name("results")
IMAGE_BYTES = 64 * 1024
SETTLE_SECONDS = 5.0  # the events of a long queue are counted once, right after the start

ECHO = """
import sys, uvicorn
from fastapi import FastAPI, File, Form, UploadFile
app = FastAPI()
@app.post("/generate", status_code=202)
def generate(image: UploadFile = File(), prompt: str = Form()):
    return {"bytes": len(image.file.read()), "prompt": prompt}
uvicorn.run(app, port=int(sys.argv[1]), http="h11", log_level="error", access_log=False)
"""

SERVICE = """
import sys
from sqlalchemy import event
from app.api import create_app
from app.api.server import build_server
from app.config import Settings
settings = Settings(data_dir=sys.argv[2], max_queued=1_000_000, heartbeat_seconds=3600)
app = create_app(settings)
if sys.argv[3] == "unsynced":
    engine = app.state.service.store._database.writes
    event.listen(engine, "connect", lambda connection, _: connection.execute("pragma synchronous=off"))
build_server(app, port=int(sys.argv[1]), log_level="error", access_log=False).run()
"""


def photo() -> bytes:
    """A JPEG of about 64 KB with content that does not compress to nothing."""
    image = Image.effect_noise((512, 384), 60).convert("RGB")
    quality, data = 95, b""
    while quality > 5:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        data = file.getvalue()
        if len(data) <= IMAGE_BYTES:
            break
        quality -= 5
    return data


def fill(folder: Path, jobs: int) -> float:
    """Queue jobs beforehand; the 99th percentile of a claim's seconds among them."""
    from app.jobs import JobSpec
    from app.store import JobStore, Rules

    store = JobStore(
        URL.create("sqlite", database=str(folder / "framefit.sqlite3")), rules=Rules(max_queued=1_000_000)
    )
    store.migrate()
    spec = JobSpec.model_validate(
        {"prompt": "x", "model": "tiny", "width": 256, "height": 256, "num_frames": 25, "fps": 12, "seed": 1}
        | {"num_inference_steps": 4, "guidance_scale": 1.0}
    )
    threads = [
        threading.Thread(target=lambda: [store.add(spec, b"x") for _ in range(jobs // 16)]) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memory = {"total_bytes": 24 * 2**30, "free_bytes": 8 * 2**30, "capacity_bytes": 20 * 2**30}
    store.register_worker("bench", {"name": "cpu", "kind": "cpu", **memory})
    seconds = []
    for _ in range(200):
        started = time.perf_counter()
        claim = store.claim("bench", loaded_model="tiny", capacity_bytes=2**40)
        seconds.append(time.perf_counter() - started)
        assert claim is not None
        store.release(claim.job.id, claim.token, "bench", refund=True)
    store.close()
    return sorted(seconds)[197]


@contextmanager
def served(program: str, *arguments: str) -> Iterator[tuple[int, int]]:
    """A server process: its port and its id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", program, str(port), *arguments], env=environment)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def _cpu_seconds(process_id: int) -> float:
    times = psutil.Process(process_id).cpu_times()
    return times.user + times.system


def hammer(port: int, process_id: int, requests: int, clients: int) -> dict[str, float]:
    """POST from many connections at once: rate, latency, and the server's own processor time, which a busy
    machine changes least; milliseconds.
    """
    boundary, image = "b0undary", photo()
    body = (
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na boat sails by\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        ).encode()
        + image
        + f"\r\n--{boundary}--\r\n".encode()
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    latencies: list[float] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(requests // clients):
            started = time.perf_counter()
            connection.request("POST", "/generate", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            latencies.append(time.perf_counter() - started)
            assert answer.status == 202, text
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    cpu_before = _cpu_seconds(process_id)
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    ordered = sorted(latencies)
    return {
        "requests_per_second": round(len(ordered) / seconds, 1),
        "p50_ms": round(1000 * ordered[len(ordered) // 2], 1),
        "p99_ms": round(1000 * ordered[int(len(ordered) * 0.99)], 1),
        "server_cpu_ms": round(1000 * (_cpu_seconds(process_id) - cpu_before) / len(ordered), 2),
    }


def main() -> None:
    """Run the three, print and keep their numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--queued", type=int, default=10_000)
    options = parser.parse_args()
    report: dict[str, object] = {
        "image_bytes": len(photo()),
        "load_average": os.getloadavg()[0],
        **vars(options),
    }
    with served(ECHO) as server:
        report["echo"] = hammer(*server, options.requests, options.clients)
    for name in ("unsynced", "durable"):
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
            claim_seconds = fill(Path(folder), options.queued)
            with served(SERVICE, folder, name) as server:
                time.sleep(SETTLE_SECONDS)
                report[name] = hammer(*server, options.requests, options.clients)
            report["claim_p99_ms"] = round(1000 * claim_seconds, 1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "load-intake.json").write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    (ROOT / "build").mkdir(exist_ok=True)
    main()
