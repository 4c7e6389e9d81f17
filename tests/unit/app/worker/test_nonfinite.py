"""Values that are not finite cross no boundary: the job fails by stage and number, or decodes in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tiny_pipelines
import torch
from scraped import total
from served_model import ServedModel, served_model

from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode, Sound, load_clip, save_calls

Spoil = Callable[[Any], None]
LTX = "LTXImageToVideoPipeline"


def nan_in_the_denoiser(pipe: Any) -> None:
    pipe.transformer.proj_out.weight[0, 0] = torch.nan


def nan_in_the_decoder(pipe: Any) -> None:
    pipe.vae.decoder.conv_out.conv.weight[0, 0, 0, 0, 0] = torch.nan


def too_large_for_half(pipe: Any) -> None:
    """The first layer of the decoder gives numbers beyond 65,504; a norm makes them small again."""
    pipe.vae.decoder.conv_in.conv.weight.mul_(3e5)


@contextmanager
def spoilt(folder: Path, spoil: Spoil, dtype: str = "float32") -> Iterator[ServedModel]:
    pipe = tiny_pipelines.build(LTX)
    with torch.no_grad():
        spoil(pipe)
    pipe.to(getattr(torch, dtype)).save_pretrained(folder / "model")
    with served_model(folder / "data", folder / "model", dtype) as served:
        yield served


def nonfinite_counted(served: ServedModel, stage: str) -> float:
    return total(served.counted(), "framefit_nonfinite_total", stage=stage)


def test_a_broken_number_in_the_denoiser_fails_the_job_before_its_latents_are_saved(tmp_path: Path) -> None:
    with spoilt(tmp_path, nan_in_the_denoiser) as served:
        job_id = served.submit()
        served.run_next()
        job = served.job(job_id)
        assert job["status"] == "failed"
        assert job["error"]["code"] == "nonfinite_values"
        found = job["error"]["data"]
        assert found["stage"] == "denoising"
        assert 0 < found["values"] <= found["of"] == 1 * 8 * 2 * 2 * 2
        assert f"{found['values']:,} of {found['of']:,} values" in job["error"]["message"]
        assert job["decode"] is None
        assert "video" not in job["links"]
        assert not (served.settings.jobs_dir / job_id / "latents.safetensors").exists()
        assert nonfinite_counted(served, "denoising") == 1
        assert total(served.counted(), "framefit_jobs_total", model="mine", outcome="failed") == 1


def test_broken_frames_fail_the_job_and_keep_its_latents(tmp_path: Path) -> None:
    with spoilt(tmp_path, nan_in_the_decoder) as served:
        job_id = served.submit()
        served.run_next()
        job = served.job(job_id)
        assert (job["status"], job["error"]["code"]) == ("failed", "nonfinite_values")
        found = job["error"]["data"]
        assert (found["stage"], found["dtype"]) == ("decoding", "float32")
        assert 0 < found["values"] <= found["of"]
        assert served.events("decode_retry") == []
        folder = served.settings.jobs_dir / job_id
        assert (folder / "latents.safetensors").exists()
        assert not list(folder.glob("video*"))
        assert not list(folder.glob("preview-*")), "no preview shows what is not there"
        assert nonfinite_counted(served, "decoding") == 1


def test_half_precision_that_overflows_is_decoded_again_in_float32_and_told_first(tmp_path: Path) -> None:
    with spoilt(tmp_path, too_large_for_half, "float16") as served:
        job_id = served.submit(decode_strategy="per_frame")
        served.run_next()
        job = served.job(job_id)
        assert job["status"] == "succeeded", job["error"]
        decode = job["decode"]
        assert (decode["dtype"], decode["exact"], decode["strategy"]) == ("float32", True, "per_frame")
        assert decode["retry"]["from_dtype"] == "float16"
        assert 0 < decode["retry"]["values"] <= decode["retry"]["of"]
        (told,) = served.events("decode_retry")
        assert (told["from_dtype"], told["to_dtype"], told["stage"]) == ("float16", "float32", "decoding")
        assert nonfinite_counted(served, "decoding") == 1

        latents = load_clip(served.settings.jobs_dir / job_id / "latents.safetensors").calls[0].latents
        vae = tiny_pipelines.build(LTX).vae
        with torch.no_grad():
            vae.decoder.conv_in.conv.weight.mul_(3e5)
            vae.to(torch.float16).to(torch.float32)
            expected = vae.decode(latents.float()).sample[0].clamp(-1, 1) / 2 + 0.5
        video = served.http.get(f"/jobs/{job_id}/video").content
        path = tmp_path / "video.mp4"
        path.write_bytes(video)
        with av.open(str(path)) as file:
            shown = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        assert shown.shape[0] == 9
        wanted = expected.permute(1, 2, 3, 0).numpy() * 255
        assert np.abs(shown.mean((1, 2)) - wanted.mean((1, 2))).max() < 6


def test_what_is_broken_in_float32_too_fails_with_both_numbers(tmp_path: Path) -> None:
    with spoilt(tmp_path, nan_in_the_decoder, "float16") as served:
        job_id = served.submit()
        served.run_next()
        job = served.job(job_id)
        assert (job["status"], job["error"]["code"]) == ("failed", "nonfinite_values")
        assert job["error"]["data"]["dtype"] == "float32"
        assert job["error"]["data"]["retry"]["from_dtype"] == "float16"
        assert "in float16 it was" in job["error"]["message"]
        assert len(served.events("decode_retry")) == 1
        assert nonfinite_counted(served, "decoding") == 2


def test_memory_that_is_missing_for_the_copy_in_float32_is_told_beside_what_it_was_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_in_half(vae: Any) -> None:
        if vae.dtype == torch.float32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("app.worker.roles.loaded_vae.self_test", only_in_half)
    with spoilt(tmp_path, too_large_for_half, "float16") as served:
        job_id = served.submit()
        served.run_next()
        job = served.job(job_id)
        assert job["error"]["code"] == "nonfinite_values", job["error"]
        assert "could not be repeated in float32: out of memory" in job["error"]["message"]
        assert job["error"]["data"]["retry"]["from_dtype"] == "float16"


def test_saved_latents_that_are_broken_are_told_and_made_anew(tmp_path: Path) -> None:
    with spoilt(tmp_path, lambda _pipe: None) as served:
        job_id = served.submit()
        served.run_next()
        assert served.job(job_id)["status"] == "succeeded"
        path = served.settings.jobs_dir / job_id / "latents.safetensors"
        good = load_clip(path)
        broken = good.calls[0].latents.clone()
        broken[0, 0, 0, 0, :2] = torch.inf
        save_calls([_with(good, broken)], path)
        answer = served.http.post(f"/jobs/{job_id}/redecode")
        assert answer.status_code == 202, answer.text
        served.run_next()
        job = served.job(job_id)
        assert job["status"] == "succeeded"
        assert nonfinite_counted(served, "latents") == 1
        (told,) = served.events("latents_unreadable")
        assert "2 of" in told["reason"]
        assert torch.equal(load_clip(path).calls[0].latents, good.calls[0].latents), "denoised again"


def _with(clip: RecordedClip, latents: torch.Tensor) -> RecordedDecode:
    return replace(clip.calls[0], latents=latents)


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_broken_sound_fails_the_job_before_anything_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveform = torch.zeros(2, 100)
    waveform[1, 7] = torch.nan
    monkeypatch.setattr("app.worker.loaded_model.sound_of", lambda _pipe, _output: Sound(waveform, 8000))
    with spoilt(tmp_path, lambda _pipe: None) as served:
        job_id = served.submit()
        served.run_next()
        error = served.job(job_id)["error"]
        assert error["code"] == "nonfinite_values"
        assert (error["data"]["stage"], error["data"]["values"], error["data"]["of"]) == ("sound", 1, 200)
        assert nonfinite_counted(served, "sound") == 1
