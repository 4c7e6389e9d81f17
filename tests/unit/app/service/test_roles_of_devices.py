"""FRAMEFIT_ROLES gives each device's worker its part of jobs; a wrong text stops the start and says why."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.config import ConfigError, Settings
from app.doctor.machine import devices as device_findings
from app.fields.roles import Role, parse_roles, role_of
from app.jobs import WorkerRow
from app.service.gpus.devices import CPU, DeviceChoice, Devices
from app.service.gpus.gauges import cards_of, worker_roles
from app.service.gpus.roles import roles_of
from app.service.processes import child_specs

CARD = DeviceChoice("GPU-1", "a card", "cuda:0")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("cuda:0", "gives no device a role"),
        ("=decode", "gives no device a role"),
        ("cuda:0=Decode", "gives no device a role"),
        ("cpu=draw", "denoise, decode or both"),
        ("cpu=decode,cpu=both", "cpu has two roles"),
    ],
)
def test_a_text_that_gives_no_roles_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Settings(roles=text)  # type: ignore[arg-type]


def test_roles_are_read_by_device() -> None:
    settings = Settings(roles=" cuda:0=denoise , cpu = decode,")  # type: ignore[arg-type]
    assert parse_roles(settings.roles) == {"cuda:0": Role.DENOISE, "cpu": Role.DECODE}
    assert Settings().roles == ()


def test_a_worker_gets_the_role_of_its_device_and_others_do_both() -> None:
    devices = Devices((CARD, CPU), ())
    roles = roles_of(devices, ["cpu=decode", "GPU-1=denoise"])
    assert roles == {"GPU-1": Role.DENOISE, "cpu": Role.DECODE}
    assert roles_of(devices, []) == {"GPU-1": Role.BOTH, "cpu": Role.BOTH}
    arguments = [spec.arguments for spec in child_specs(devices, 3, "one", roles) if spec.worker_id]
    assert [each[-2:] for each in arguments] == [("--role", "denoise"), ("--role", "decode")]
    plain = [spec.arguments for spec in child_specs(devices, 3, "one") if spec.worker_id]
    assert not any("--role" in each for each in plain), "a worker that does both starts as ever"


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        (["cpu=decode"], "FRAMEFIT_ROLES: cpu has a role and no worker"),
        (["GPU-2=decode"], "FRAMEFIT_ROLES: no such device: GPU-2"),
    ],
)
def test_a_role_of_a_device_without_a_worker_stops_the_start(entries: list[str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        roles_of(Devices((CARD,), ()), entries)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cpu=both", "cpu: both"),
        ("cpu=decode", "no worker of this service denoises"),
        ("GPU-9=decode", "no such device"),
    ],
)
def test_the_doctor_shows_roles(text: str, told: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, devices="cpu", roles=text)  # type: ignore[arg-type]
    (found,) = [each for each in device_findings(settings) if each.subject == "roles"]
    assert told in found.detail


def test_a_gauge_shows_the_role_that_each_device_reports() -> None:
    reports = [{"name": "cpu", "role": "decode"}, {"name": "cuda:0"}]
    workers = [WorkerRow(f"h/{n}/i", report, None, "active", 0, n) for n, report in enumerate(reports)]
    samples = worker_roles(workers, cards_of(workers)).samples
    assert [(each.labels["device"], each.labels["role"]) for each in samples] == [
        ("cpu", "decode"),
        ("cuda:0", "both"),
    ]
    assert role_of({"role": "of a later version"}) is Role.BOTH
