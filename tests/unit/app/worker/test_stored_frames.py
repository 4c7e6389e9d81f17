"""The first and the last frame of a job are stored as the VAE decoded them, also after another decode."""

import io
from pathlib import Path

import numpy as np
import tiny_pipelines
import torch
from PIL import Image
from served_model import served_model

import adaptive
from adaptive.pipelines.recorded_call import load_clip
from app.artifacts.local_folder import job_artifacts
from app.worker.frame_transfer import to_pixels

LTX = "LTXImageToVideoPipeline"


def test_first_and_last_frame_are_the_pixels_that_the_vae_decodes(tmp_path: Path) -> None:
    folder = tiny_pipelines.save(LTX, tmp_path / "model")
    with served_model(tmp_path / "data", folder) as served:
        job_id = served.submit(num_inference_steps=2)
        served.run_next()
        for again in (False, True):
            if again:
                path = f"/jobs/{job_id}/redecode"
                served.http.post(path, json={"decode_strategy": "per_frame"}).raise_for_status()
                served.run_next()
            job = served.job(job_id)
            assert job["status"] == "succeeded"
            (call,) = load_clip(job_artifacts(served.settings.jobs_dir, job_id).latents).calls
            vae = served.engine.load(served.models["mine"], lambda *_: None).pipe.vae
            with torch.no_grad():
                expected = to_pixels(adaptive.decode(vae, call.latents, **call.kwargs)[0]).numpy()
            for which, frame in (("first", expected[0]), ("last", expected[-1])):
                answer = served.http.get(job["links"][f"{which}_frame"])
                found = np.asarray(Image.open(io.BytesIO(answer.content)))
                assert np.abs(found.astype(int) - frame.astype(int)).max() <= 1  # rounding of the same values
            assert (expected[0] != expected[-1]).any()
