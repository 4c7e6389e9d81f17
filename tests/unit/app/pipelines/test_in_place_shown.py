"""What is shown of a job that decodes in place: no picture before its safety checker has allowed it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_pipelines
from in_place_served import finished, history, served_in_place, stand_in_checker
from served_model import served_model

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
FRAMES = 41  # so many that key frames are worth showing
PICTURES = ("*.jpg", "*.png", "*.mp4")


@pytest.mark.parametrize(
    "pipeline", ["CosmosVideoToWorldPipeline", "Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline"]
)
def test_a_video_that_the_safety_checker_refuses_leaves_no_picture(
    pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in_checker(monkeypatch) as checker, served_in_place(tmp_path, pipeline) as served:
        monkeypatch.setattr(checker, "shows_nothing", True)
        job = finished(served, num_frames=FRAMES)
        assert job["error"]["code"] == "content_refused"
        folder = served.settings.jobs_dir / job["id"]
        assert [path.name for kind in PICTURES for path in folder.rglob(kind)] == []
        assert not job["links"].get("previews")
        assert not [event for event in history(served, job) if event.kind == "preview"]
        assert served.http.get(f"/jobs/{job['id']}/previews/0.jpg").status_code == 404


def test_a_pipeline_without_a_safety_checker_shows_key_frames_of_its_decode(tmp_path: Path) -> None:
    folder = tiny_pipelines.save("LTXImageToVideoPipeline", tmp_path / "model")
    with served_model(tmp_path / "data", folder) as served:
        served.models["mine"] = served.models["mine"].model_copy(update={"decode_in_place": True})
        job_id = served.submit(num_frames=57)
        served.run_next()
        job = served.job(job_id)
        assert job["status"] == "succeeded", job["error"]
        assert len(job["links"]["previews"]) > 0
