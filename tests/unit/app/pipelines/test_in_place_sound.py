"""A pipeline that makes sound keeps it if its entry lets it decode in place."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import served_model
import tiny_pipelines
from served_model import ServedModel

PIPELINE = "LTX2ImageToVideoPipeline"
ENTRY = (
    served_model.ENTRY.replace("LTXImageToVideoPipeline", PIPELINE).replace("KLLTXVideo", "KLLTX2Video")
    + "[models.mine.call]\nstg_scale = 0.0\naudio_stg_scale = 0.0\n"
)
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedModel]:
    monkeypatch.setattr(served_model, "ENTRY", ENTRY)
    folder = tiny_pipelines.save(PIPELINE, tmp_path / "model")
    with served_model.served_model(tmp_path / "data", folder) as running:
        yield running


def made(served: ServedModel) -> dict[str, Any]:
    job_id = served.submit()
    served.run_next()
    return served.job(job_id)


def decode_in_place(served: ServedModel) -> None:
    served.models["mine"] = served.models["mine"].model_copy(update={"decode_in_place": True})


def heard(served: ServedModel, job: dict[str, Any]) -> np.ndarray:
    with av.open(io.BytesIO(served.http.get(job["links"]["video"]).content)) as file:
        return np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], 1)


def test_a_video_that_is_decoded_in_place_has_the_sound_of_its_pipeline(served: ServedModel) -> None:
    apart = made(served)
    assert apart["status"] == "succeeded", apart["error"]
    decode_in_place(served)
    job = made(served)
    assert job["status"] == "succeeded", job["error"]
    assert job["decode"]["decodes"] == 1
    assert job["result"]["audio"] is not None
    assert job["result"]["audio"] == apart["result"]["audio"]
    assert np.array_equal(heard(served, job), heard(served, apart))


def test_sound_that_is_not_finite_fails_a_job_that_decodes_in_place(served: ServedModel) -> None:
    decode_in_place(served)
    pipe = served.engine.load(served.models["mine"], lambda *_: None).pipe
    pipe.vocoder.register_forward_hook(lambda _module, _args, output: output * float("nan"))
    job = made(served)
    assert job["status"] == "failed"
    assert job["error"]["code"] == "nonfinite_values"
    assert "the sound" in job["error"]["message"]
