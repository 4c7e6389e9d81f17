"""One built image and one compose project for the tests of this folder, which need a container engine.

`make test-docker`. What differs between machines comes from the environment: PYTHON_IMAGE and TORCH_INDEX_URL
as in docker/.env.example, and DOCKER_TEST_NETWORK=host for an engine without a bridge.
"""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

DOCKER = Path(__file__).parents[2] / "docker"
BUILD_SECONDS = 1800
HOST_NETWORK = """
services:
  framefit:
    build: { network: host }
    network_mode: host
    ports: !reset []
    environment: { FRAMEFIT_PORT: "%d" }
"""


def docker(*arguments: str, timeout: float = 120) -> str:
    """Standard output of a docker command that must succeed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Project:
    """The service of the compose files, on the CPU, under a project name of its own."""

    name: str
    override: Path
    port: int

    def compose(self, *arguments: str, timeout: float = 180) -> str:
        """Output of `docker compose` on the project's files."""
        files = (
            "-f",
            str(DOCKER / "compose.yaml"),
            "-f",
            str(DOCKER / "compose.cpu.yaml"),
            "-f",
            str(self.override),
        )
        return docker("compose", "-p", self.name, *files, *arguments, timeout=timeout)

    @property
    def container(self) -> str:
        """Id of the service's container, running or not."""
        return self.compose("ps", "-a", "-q", "framefit").strip()

    def inspect(self) -> dict[str, Any]:
        """What the engine knows of the container."""
        found: dict[str, Any] = json.loads(docker("inspect", self.container))[0]
        return found

    def http(self) -> httpx.Client:
        """A client of the published port."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The built image; nothing is started. Everything is removed afterwards, volumes too."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True).returncode != 0
    ):
        pytest.skip("no container engine answers (docker info)")
    port = free_port()
    os.environ["PORT"] = str(port)
    override = tmp_path_factory.mktemp("compose") / "override.yaml"
    on_host = os.environ.get("DOCKER_TEST_NETWORK") == "host"
    override.write_text(HOST_NETWORK % port if on_host else "services: {}\n")
    project = Project(f"framefit-test-{os.getpid()}", override, port)
    project.compose("build", "framefit", timeout=BUILD_SECONDS)
    yield project
    project.compose("down", "--volumes", "--timeout", "10")
