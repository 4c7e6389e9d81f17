"""A job whose image was lost from the data folder fails and says so; its latents need no image."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_pipelines
from served_model import ServedModel, served_model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    folder = tmp_path_factory.mktemp("served")
    tiny_pipelines.build("LTXImageToVideoPipeline").save_pretrained(folder / "model")
    with served_model(folder / "data", folder / "model") as running:
        yield running


def the_image(served: ServedModel) -> Path:
    """The file of the only image."""
    (path,) = (one for one in (served.settings.data_dir / "pictures").rglob("*") if one.is_file())
    return path


def test_a_job_without_its_image_fails_with_a_code_of_its_own_and_can_be_retried(served: ServedModel) -> None:
    job_id = served.submit()
    path = the_image(served)
    away = path.rename(served.settings.data_dir / "away")
    served.run_next()
    job = served.job(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "image_missing")
    assert "is missing from the data folder" in job["error"]["message"]
    answer = served.http.get(f"/jobs/{job_id}/image")
    assert (answer.status_code, answer.json()["code"]) == (410, "image_missing")
    remix = served.http.post(f"/v1/videos/{job_id}/remix", json={"prompt": "another"})
    assert (remix.status_code, remix.json()["error"]["code"]) == (410, "image_missing")
    away.rename(path)
    assert served.http.post(f"/jobs/{job_id}/retry").status_code == 202
    served.run_next()
    assert served.job(job_id)["status"] == "succeeded"
    path.write_bytes(b"")
    assert served.http.post(f"/jobs/{job_id}/redecode", json={}).status_code == 202
    served.run_next()
    assert served.job(job_id)["status"] == "succeeded", "the latents were saved"
