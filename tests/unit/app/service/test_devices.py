"""Which devices get a worker on machines whose driver answers oddly: the table is in `scripted_drivers`."""

from pathlib import Path
from typing import Any

import nvml_stub
import pytest
import scripted_drivers
from scripted_drivers import DRIVERS, Driver

from app.service.gpus.devices import CPU, choose_devices

Said = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Said:
    """What the parts of the service say of each driver. CUDA's own library is there, though empty."""
    nvml_stub.build_empty(nvml_library.parent / "libcuda.so.1")
    return scripted_drivers.observe(tmp_path_factory.mktemp("drivers"), nvml_library)


each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.what.replace(" ", "-"))


@each_driver
def test_no_answer_of_a_driver_ends_in_a_traceback(said: Said, driver: Driver) -> None:
    assert said[driver.what].get("traceback") is None, said[driver.what]["traceback"]
    assert isinstance(said[driver.what]["devices"], dict), said[driver.what]["devices"]


@each_driver
def test_the_devices_show_no_number_that_cannot_be(said: Said, driver: Driver) -> None:
    for gpu in said[driver.what]["devices"]["gpus"]:
        assert 0 <= gpu["free_bytes"] <= gpu["total_bytes"] < 2**50, gpu
        assert gpu["utilization"] is None or 0 <= gpu["utilization"] <= 1, gpu
        assert -1 <= gpu["index"] < 2**10, gpu
        assert len(gpu["holders"]) < 100, gpu
        assert all(0 <= (one["used_bytes"] or 0) < 2**50 for one in gpu["holders"]), gpu


@each_driver
def test_every_card_that_cuda_opens_is_used(said: Said, driver: Driver) -> None:
    found = said[driver.what]
    assert found["auto"] == sorted(driver.auto)
    assert found["unused"] == sorted(driver.unused)
    for key, card in (("cuda:0", driver.first), ("uuid", driver.by_uuid)):
        if card:
            assert found[key] == [card], found[key]
        else:
            assert "no such device" in found[key], found[key]


@each_driver
def test_the_doctor_and_the_devices_say_what_is_used_and_what_is_not(said: Said, driver: Driver) -> None:
    found = said[driver.what]
    wrong = [one for one in found["doctor"] if one["standing"] == "wrong" and one["subject"] != "torch"]
    faults = [reason for reason in driver.unused if reason != "hidden"]
    assert (wrong != []) == (faults != []), found["doctor"]
    assert all(one["advice"] for one in wrong)
    told = " ".join(one["detail"] + one["advice"] for one in found["doctor"])
    assert ("reboot" in told) == ("gpu_lost" in faults), told
    assert "jobs run on the CPU" in told or driver.auto


def test_a_device_that_is_named_twice_gets_one_worker() -> None:
    assert choose_devices("cpu, cpu").chosen == (CPU,), "two workers of one name would take each other's jobs"
