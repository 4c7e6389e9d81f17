"""The first job of a model that lies at a hub, which is one on this machine: real processes and browser."""

import os
import re
import signal
from pathlib import Path

import pytest
from browser import CHROMIUM, chromium
from fake_hub import Repository, running_hub
from running_service import START_SECONDS, StartService
from waiting import wait_for

SOURCE = "somebody/tiny"
MIB = 2**20
RECORDED_SOCKETS = Path(__file__).with_name("recorded_sockets")
SHORT = {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 1}
DOWNLOADING = re.compile(r"Downloading the model · [\d.]+ .?i?B of [\d.]+ MiB")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_it_is_downloaded_in_sight_of_all_survives_a_kill_and_nobody_but_the_hub_is_contacted(
    start_service: StartService, built_model: Path, tmp_path: Path
) -> None:
    models, recorded = tmp_path / "models.toml", tmp_path / "sockets"
    models.write_text(f'[models.tiny]\nsource = "{SOURCE}"\n')
    with running_hub() as hub:
        repository = hub.repositories[SOURCE] = Repository.of(built_model)
        hub.bytes_per_second = MIB / 16  # of each connection: half a minute, if nobody ends it
        environ = {
            name: value for name, value in hub.environ(tmp_path / "hf").items() if "TELEMETRY" not in name
        }
        path = os.pathsep.join([str(RECORDED_SOCKETS), os.environ.get("PYTHONPATH", "")])
        service = start_service(
            **environ, FRAMEFIT_MODELS_FILE=str(models), PYTHONPATH=path, RECORDED_SOCKETS=str(recorded)
        )
        wait_for(lambda: service.http.get("/readyz").status_code == 200, START_SECONDS, service.log)
        assert not any("safetensors" in request for request in hub.requests)  # nobody has asked for weights
        with chromium() as browser:
            page = browser.new_page()
            page.goto(str(service.http.base_url))
            wait_for(
                lambda: "Not on this machine" in page.inner_text("#model-storage"), START_SECONDS, service.log
            )
            job = service.submit(**SHORT)
            wait_for(lambda: DOWNLOADING.search(page.inner_text("#jobs")), START_SECONDS, service.log)
            seen = service.wait_until(
                job["id"], lambda one: one["download"] and one["download"]["bytes_per_second"]
            )
            assert seen["stage"] == "downloading"
            assert 0 < seen["download"]["done_bytes"] < seen["download"]["total_bytes"]
            assert seen["download"]["seconds_left"] > 0
        service.worker().send_signal(signal.SIGKILL)
        wait_for(lambda: "requeued" in service.kinds(job["id"]), START_SECONDS, service.log)
        hub.bytes_per_second = None
        ended = service.finished(job["id"])
        assert ended["download"]["done_bytes"] == ended["download"]["total_bytes"]
        assert hub.sent_bytes < repository.total_bytes + MIB  # the second attempt went on
        counted = wait_for(
            lambda: service.counted("framefit_download_bytes_total", model="tiny"), START_SECONDS
        )
        assert 0 < counted <= repository.total_bytes
        port = hub.url.rpartition(":")[2]
        contacts = {tuple(line.split()) for line in recorded.read_text().splitlines()}
        assert ("connect", "127.0.0.1", port) in contacts
        elsewhere = {each for each in contacts if each[1] not in ("127.0.0.1", "::1", "localhost", "None")}
        assert not elsewhere
        assert not any("agent" in request or "telemetry" in request for request in hub.requests)
