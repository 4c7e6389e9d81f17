"""Video and frames of a job say how they were made, unless operator or request have switched it off."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
from PIL import Image
from served_model import ServedModel, served_model

from adaptive.version import __version__
from app.artifacts.local_folder import JobArtifacts, job_artifacts
from app.media.metadata.inspected import media_document

LTX = "LTXImageToVideoPipeline"
SECRET = "a bear that nobody may know of"
FRAMES = ("first", "last", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.save(LTX, tmp_path_factory.mktemp("ltx") / "model")


def finished(served: ServedModel, **fields: Any) -> tuple[str, JobArtifacts]:
    job_id = served.submit(prompt=SECRET, negative_prompt="wolves", **fields)
    served.run_next()
    return job_id, job_artifacts(served.settings.jobs_dir, job_id)


def frame_facts(served: ServedModel, job_id: str, which: str) -> dict[str, Any]:
    answer = served.http.get(f"/jobs/{job_id}/frames/{which}.png")
    facts: dict[str, Any] = json.loads(Image.open(io.BytesIO(answer.content)).info["Comment"])
    return facts


def holds_nothing(files: JobArtifacts) -> bool:
    kept = [path for path in files.folder.iterdir() if path.suffix in (".mp4", ".webm", ".png", ".jpg")]
    return bool(kept) and not any(
        word in path.read_bytes() for path in kept for word in (SECRET.encode(), b"wolves", b"framefit")
    )


def test_video_and_frames_tell_prompt_seed_model_shape_and_how_they_were_decoded(
    tmp_path: Path, folder: Path
) -> None:
    with served_model(tmp_path, folder) as served:
        job_id, files = finished(served, seed=2**63 + 1, decode_strategy="per_frame")
        told = media_document(files.video)
        assert told["title"] == SECRET
        facts = dict(told["made"])
        decode = facts.pop("decode")
        assert (decode["strategy"], decode["frames_per_chunk"], decode["exact"]) == ("per_frame", 1, True)
        assert facts == {
            "framefit": __version__,
            "model": "mine",
            "prompt": SECRET,
            "negative_prompt": "wolves",
            "num_inference_steps": 1,
            "guidance_scale": 1.0,
            "seed": str(2**63 + 1),
            "width": 64,
            "height": 64,
            "num_frames": 9,
            "fps": 8,
        }
        for which in FRAMES:
            assert frame_facts(served, job_id, which) == told["made"]
        # Another decode takes it out of all files.
        assert SECRET.encode() in files.video.read_bytes()
        again = served.http.post(f"/jobs/{job_id}/redecode", json={"embed_metadata": False})
        assert again.status_code == 202
        served.run_next()
        assert holds_nothing(files)


@pytest.mark.parametrize(("by_request", "by_operator"), [(False, True), (True, False)])
def test_nothing_is_told_where_it_is_switched_off(
    tmp_path: Path, folder: Path, by_request: bool, by_operator: bool
) -> None:
    with served_model(tmp_path, folder, embed_metadata=by_operator) as served:
        job_id, files = finished(served, embed_metadata=str(by_request).lower())
        assert served.http.get(f"/jobs/{job_id}/frames/3.png?exact=1").status_code == 202
        served.run_next()
        assert served.http.get(f"/jobs/{job_id}/frames/3.png?exact=1").status_code == 200
        if not by_operator:
            assert served.http.get(f"/jobs/{job_id}/video?format=webm").status_code == 200
        assert holds_nothing(files)
