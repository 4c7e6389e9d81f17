"""A real Prometheus with the shipped rules, which scrapes the processes that a test names."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import yaml
from grafana_boards import Prometheus
from waiting import wait_for

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "docker" / "prometheus"
START_SECONDS = 120


@contextmanager
def prometheus_server(
    folder: Path, port: int, targets: Sequence[str], *, scrape_seconds: int = 1
) -> Iterator[Prometheus]:
    """Start it on that port with the shipped configuration, but these targets, and hand it out when ready."""
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    every = f"{scrape_seconds}s"
    config["global"] |= {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
    config["rule_files"] = [str(SHIPPED / pattern) for pattern in config["rule_files"]]
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "framefit"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
    del config["alerting"]  # whom the tests would ask for by name
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    options = {
        "config.file": path,
        "storage.tsdb.path": folder / "tsdb",
        "web.listen-address": f"127.0.0.1:{port}",
        "enable-feature": "exemplar-storage",
    }
    command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    log = folder / "prometheus.log"
    with running(command, dict(os.environ), log), closing(Prometheus(f"http://127.0.0.1:{port}")) as server:
        wait_for(lambda: _ready(port), START_SECONDS, log.read_text)
        yield server


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=30).is_success
    except httpx.TransportError:
        return False


@contextmanager
def running(
    command: Sequence[str], environ: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the end of the block; its output goes to the log."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environ), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
