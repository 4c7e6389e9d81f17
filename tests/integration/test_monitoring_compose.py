"""The container files agree with the service and with themselves, as far as that shows without an engine."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.api.middleware.hosts import OwnHosts
from app.config import Settings, setting_variables

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BASE, CPU = ("-f", "compose.yaml"), ("-f", "compose.yaml", "-f", "compose.cpu.yaml")
PROFILES = ("--profile", "dcgm", "--profile", "postgres", "--profile", "alertmanager")


def has_compose() -> bool:
    docker = shutil.which("docker")
    return (
        docker is not None
        and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    )


needs_compose = pytest.mark.skipif(not has_compose(), reason="docker compose v2 is not installed")


def compose(*arguments: str, **variables: str) -> dict[str, Any]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FRAMEFIT_")}
    done = subprocess.run(
        ["docker", "compose", "--env-file", ".env.example", *arguments, "config"],
        cwd=DOCKER,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    parsed: dict[str, Any] = yaml.safe_load(done.stdout)
    return parsed


@needs_compose
@pytest.mark.parametrize("files", [BASE, CPU], ids=["gpu", "cpu"])
@pytest.mark.parametrize("profiles", [(), PROFILES], ids=["plain", "all-profiles"])
def test_every_combination_of_files_is_valid_and_publishes_ports_on_loopback_only(
    files: tuple[str, ...], profiles: tuple[str, ...]
) -> None:
    services = compose(*files, *profiles)["services"]
    assert set(services) == {"framefit", "prometheus", "grafana"} | (
        {"dcgm-exporter", "postgres", "alertmanager"} if profiles else set()
    )
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


@needs_compose
def test_the_gpu_is_reserved_unless_the_cpu_file_takes_it_away() -> None:
    device = compose(*BASE)["services"]["framefit"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu", "compute", "utility"])
    without = compose(*CPU)["services"]["framefit"]
    assert not without.get("deploy")
    assert without["environment"]["FRAMEFIT_DEVICES"] == "cpu"


@needs_compose
def test_the_service_has_longer_to_stop_than_it_takes_to_drain() -> None:
    service = compose(*BASE)["services"]["framefit"]
    assert service["stop_grace_period"] == "1m30s"
    assert float(service["environment"]["FRAMEFIT_DRAIN_SECONDS"]) <= 60


@needs_compose
def test_a_setting_of_the_environment_reaches_the_service_and_an_absent_one_stays_absent() -> None:
    given = compose(*BASE, FRAMEFIT_MODEL="tiny")["services"]["framefit"]["environment"]
    assert given["FRAMEFIT_MODEL"] == "tiny"
    assert given["FRAMEFIT_API_KEYS"] is None


def service_environment() -> dict[str, Any]:
    parsed = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    environment: dict[str, Any] = parsed["services"]["framefit"]["environment"]
    return environment


def test_compose_passes_on_only_settings_that_exist() -> None:
    assert {name for name in service_environment() if name.startswith("FRAMEFIT_")} <= setting_variables()


def test_the_service_answers_to_the_name_that_prometheus_asks_for() -> None:
    parsed = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    (job,) = (each for each in parsed["scrape_configs"] if each["job_name"] == "framefit")
    ((target,),) = (each["targets"] for each in job["static_configs"])
    given = service_environment()["FRAMEFIT_ALLOWED_HOSTS"].replace("${FRAMEFIT_ALLOWED_HOSTS:-}", "")
    hosts = OwnHosts(Settings(allowed_hosts=given).allowed_hosts)
    assert hosts.refusal({"type": "http", "headers": [(b"host", target.encode())]}) is None


def test_the_images_own_settings_exist_and_a_public_bind_needs_an_explicit_yes() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    known = {f"FRAMEFIT_{name.upper()}" for name in Settings.model_fields}
    named = {
        word.split("=")[0] for word in dockerfile.split() if word.startswith("FRAMEFIT_") and "=" in word
    }
    assert {"FRAMEFIT_HOST", "FRAMEFIT_PORT", "FRAMEFIT_DATA_DIR"} <= named <= known
    assert "FRAMEFIT_ALLOW_PUBLIC" not in named
    assert service_environment()["FRAMEFIT_ALLOW_PUBLIC"] == "${FRAMEFIT_ALLOW_PUBLIC:-true}"


def test_the_image_runs_as_an_ordinary_user_and_holds_no_secret() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    final_stage = dockerfile.rsplit("FROM ", 1)[1]
    assert "\nUSER 10001:0\n" in final_stage
    assert "HEALTHCHECK" in final_stage
    assert not any(word in dockerfile for word in ("HF_TOKEN", "API_KEYS=", "PASSWORD"))


def test_the_build_context_is_an_allow_list_of_what_the_image_is_made_of() -> None:
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        word
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert allowed == copied
