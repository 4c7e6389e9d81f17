"""docker/check.sh on machines that it would meet: engine and driver are scripted, the rest is real."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

DOCKER = Path(__file__).parents[2] / "docker"
ENGINE = """#!/bin/sh
case "$*" in
  *ServerVersion*) echo "$ENGINE_VERSION" ;;
  *DockerRootDir*) echo / ;;
  *Runtimes*) echo "$ENGINE_RUNTIMES" ;;
  "compose version --short") [ -n "$COMPOSE_VERSION" ] && echo "$COMPOSE_VERSION" ;;
  "buildx version") exit "$BUILDX" ;;
esac
"""
DRIVER = '#!/bin/sh\n[ -n "$DRIVER_VERSION" ] && echo "$DRIVER_VERSION"\n'
DISK = '#!/bin/sh\necho header\necho "/dev/x 1 1 $((FREE_GIB * 1048576)) 1% /"\n'
WELL = {
    "ENGINE_VERSION": "28.2.2",
    "ENGINE_RUNTIMES": '{"nvidia":{},"runc":{}}',
    "COMPOSE_VERSION": "v2.32.4",
    "BUILDX": "0",
    "DRIVER_VERSION": "580.65.06",
    "FREE_GIB": "100",
}


@dataclass
class Machine:
    """A folder with the script and what it reads, and programs that answer as `answers` say."""

    folder: Path
    programs: Path
    ports: list[int]
    answers: dict[str, str] = field(default_factory=lambda: dict(WELL))

    def env(self, *lines: str) -> None:
        names = ("PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
        ports = [f"{name}={port}" for name, port in zip(names, self.ports, strict=True)]
        (self.folder / ".env").write_text("\n".join([*ports, *lines, ""]))

    def check(self, *arguments: str) -> tuple[int, list[str]]:
        """The exit status, and the lines that are no "ok"."""
        path = f"{self.programs}:/usr/bin:/bin"
        done = subprocess.run(
            [self.folder / "check.sh", *arguments],
            env={"PATH": path, **self.answers},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.stderr == ""
        return done.returncode, [line for line in done.stdout.splitlines() if not line.startswith("ok ")]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    folder, programs = tmp_path / "docker", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name in ("check.sh", "compose.yaml"):
        shutil.copy(DOCKER / name, folder / name)
    for name, script in (("docker", ENGINE), ("nvidia-smi", DRIVER), ("df", DISK)):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    held = [socket.socket() for _ in range(3)]
    for one in held:
        one.bind(("127.0.0.1", 0))  # bound and not listening: free for the script, and nobody else's
    made = Machine(folder, programs, [one.getsockname()[1] for one in held])
    made.env()
    yield made
    for one in held:
        one.close()


def test_a_machine_that_is_ready_passes(machine: Machine) -> None:
    assert machine.check() == (0, [])
    assert machine.check("--cpu") == (0, [])


@pytest.mark.parametrize(
    ("changed", "subject", "told", "advice"),
    [
        ({"ENGINE_VERSION": ""}, "engine", "no engine answers", "systemctl start docker"),
        ({"COMPOSE_VERSION": ""}, "compose", "does not run", "apt install docker-compose"),
        ({"COMPOSE_VERSION": "2.20.0"}, "compose", "does not know !reset", "2.24.4"),
        ({"BUILDX": "1"}, "buildx", "cannot build", "apt install docker-buildx"),
        ({"FREE_GIB": "10"}, "disk", "10 GiB free", "free some"),
        ({"DRIVER_VERSION": ""}, "gpu", "shows no GPU", "--cpu"),
        ({"DRIVER_VERSION": "550.54.14"}, "gpu", "too old for torch for CUDA 13", "older CUDA"),
        ({"ENGINE_RUNTIMES": '{"runc":{}}'}, "toolkit", "is not installed", "nvidia-ctk runtime configure"),
    ],
)
def test_what_would_fail_is_named_with_what_to_do(
    machine: Machine, changed: dict[str, str], subject: str, told: str, advice: str
) -> None:
    machine.answers |= changed
    status, lines = machine.check()
    assert status == 1
    assert lines[0].split()[:2] == ["wrong", subject]
    assert told in lines[0]
    assert advice in lines[1]
    assert len(lines) == 2


def test_without_a_gpu_neither_driver_nor_toolkit_is_asked_for(machine: Machine) -> None:
    machine.answers |= {"DRIVER_VERSION": "", "ENGINE_RUNTIMES": "{}", "FREE_GIB": "10"}
    assert machine.check("--cpu") == (0, [])


def test_the_driver_must_suit_the_build_of_torch_that_is_chosen(machine: Machine) -> None:
    machine.answers["DRIVER_VERSION"] = "550.54.14"
    machine.env("TORCH_INDEX_URL=https://download.pytorch.org/whl/cu126")
    assert machine.check() == (0, [])
    machine.env("TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu")
    status, lines = machine.check()
    assert status == 1
    assert "CPU build" in lines[0]


def test_a_port_in_use_is_named_with_the_variable_that_changes_it(machine: Machine) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        machine.ports[1] = busy.getsockname()[1]
        machine.env()
        status, lines = machine.check()
    assert status == 1
    assert f"{machine.ports[1]} is in use" in lines[0]
    assert "PROMETHEUS_PORT" in lines[1]


def missing(_folder: Path) -> None:
    pass


def of_root(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)


def of_another_user(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12345, 12345)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (missing, "does not exist"),
        (of_root, "belongs to user 0"),
        (of_another_user, "belongs to user 12345"),
    ],
)
def test_a_folder_that_the_container_cannot_use_is_named_with_the_command_that_helps(
    machine: Machine, tmp_path: Path, make: Callable[[Path], None], told: str
) -> None:
    if os.getuid():
        pytest.skip("only root can give a folder away")
    data = tmp_path / "data"
    make(data)
    machine.env(f"DATA_VOLUME={data}")
    status, lines = machine.check()
    assert status == 1
    assert told in lines[0]
    assert f"chown -R 10001:0 {data}" in lines[1]
    data.mkdir(exist_ok=True)
    os.chown(data, 10001, 0)
    assert machine.check() == (0, [])


def test_a_folder_of_group_0_is_good_for_any_user(machine: Machine, tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("only root can give a folder away")
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 12345, 0)
    data.chmod(0o775)
    machine.env(f"DATA_VOLUME={data}")
    assert machine.check() == (0, [])


def test_metrics_that_need_a_key_which_prometheus_does_not_have_are_named(machine: Machine) -> None:
    (machine.folder / "prometheus").mkdir()
    rules = machine.folder / "prometheus" / "prometheus.yml"
    rules.write_text((DOCKER / "prometheus" / "prometheus.yml").read_text())
    machine.env("FRAMEFIT_OPEN_MONITORING=false")
    status, lines = machine.check()
    assert status == 0
    assert "there will be no metrics" in lines[0]
    rules.write_text("    authorization: { credentials_file: /run/secrets/framefit }\n")
    assert machine.check() == (0, [])


def test_a_setting_that_compose_does_not_know_is_named(machine: Machine) -> None:
    machine.env("FRAMEFIT_MODEL=tiny", "FRAMEFIT_MODLE=tiny")
    status, lines = machine.check()
    assert status == 1
    assert lines[0].endswith("does not pass on: FRAMEFIT_MODLE")
