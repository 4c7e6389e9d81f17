"""GPUs without a worker: told in the log, in a file for the API process, on `/devices` and as a metric."""

import logging
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from waiting import wait_for

from app.config import Settings
from app.service.gpus import unused as unused_gpus
from app.service.gpus.unused import UnusedGpu, UnusedReason, published, unreachable_cards

SILENT = UnusedGpu("GPU-1", "GB10", UnusedReason.NO_CUDA_BUILD, "torch was built without CUDA")
HIDDEN = UnusedGpu("GPU-2", "GTX1060", UnusedReason.HIDDEN)


def test_what_is_published_is_read_until_it_is_withdrawn(tmp_path: Path) -> None:
    assert published(tmp_path) == ()
    unused_gpus.publish(tmp_path, [SILENT, HIDDEN])
    assert published(tmp_path) == (SILENT, HIDDEN)
    unused_gpus.withdraw(tmp_path)
    assert published(tmp_path) == ()


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"uuid": ""}]', '[{"reason": "a reason of later"}]'])
def test_a_file_that_cannot_be_read_tells_of_no_gpu(tmp_path: Path, text: str) -> None:
    (tmp_path / unused_gpus.FILE).write_text(text)
    assert published(tmp_path) == ()


@pytest.mark.parametrize(
    ("gpu", "on_cpu", "level"),
    [
        (SILENT, True, logging.WARNING),
        (SILENT, False, logging.WARNING),
        (HIDDEN, True, logging.WARNING),
        (HIDDEN, False, logging.INFO),
        (UnusedGpu("GPU-3", "", UnusedReason.NOT_SELECTED), True, logging.INFO),
    ],
)
def test_a_gpu_that_is_seen_while_the_cpu_works_is_warned_of(
    caplog: pytest.LogCaptureFixture, gpu: UnusedGpu, on_cpu: bool, level: int
) -> None:
    caplog.set_level(logging.INFO)
    unused_gpus.warn([gpu], on_cpu=on_cpu)
    (record,) = caplog.records
    assert (record.levelno, gpu.uuid in record.getMessage()) == (level, True)
    assert gpu.reason.advice in record.getMessage()


def test_cards_that_only_the_kernel_has_are_told(tmp_path: Path) -> None:
    (tmp_path / "0000:65:00.0").mkdir()
    (gpu,) = unreachable_cards(tmp_path)
    assert (gpu.reason, "0000:65:00.0" in gpu.name) == (UnusedReason.NO_ACCESS, True)
    assert "--gpus all" in gpu.reason.advice
    assert unreachable_cards(tmp_path / "none") == ()


def scraped(client: TestClient) -> httpx.Response | None:
    answer = client.get("/metrics")
    return answer if answer.status_code == 200 else None


def test_devices_and_metrics_tell_what_the_parent_published(client: TestClient, settings: Settings) -> None:
    unused_gpus.publish(settings.data_dir, [SILENT, HIDDEN])
    try:
        told = client.get("/devices").json()["unused_gpus"]
        assert [(one["uuid"], one["reason"]) for one in told] == [
            ("GPU-1", "no_cuda_build"),
            ("GPU-2", "hidden"),
        ]
        assert "CUDA build of torch" in told[0]["advice"]
        answer = wait_for(lambda: scraped(client), 120, lambda: client.get("/metrics").text)
        families = {each.name: each for each in text_string_to_metric_families(answer.text)}
        counted = {one.labels["reason"]: one.value for one in families["framefit_gpu_unused"].samples}
        assert counted == {**dict.fromkeys(UnusedReason, 0), "no_cuda_build": 1, "hidden": 1}
    finally:
        unused_gpus.withdraw(settings.data_dir)
    assert client.get("/devices").json()["unused_gpus"] == []
